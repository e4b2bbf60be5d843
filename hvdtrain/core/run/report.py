"""Comparing runs: how far loss curves differ, and their picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CurveDifference:
    """How far two loss curves lie apart.

    Attributes:
        largest: the largest |a - b| / |a| over all updates.
        at_step: the update where it is.
        updates: how many updates were compared.
    """

    largest: float
    at_step: int
    updates: int


def compare_runs(first: Path, second: Path, updates: int | None = None) -> CurveDifference:
    """Compare the training losses of two runs, update by update.

    Args:
        first: output directory of the run that is the reference.
        second: output directory of the other.
        updates: compare only so many from the start.

    Returns:
        The largest relative difference and where it is.

    Raises:
        TrainingError: when the runs did not log the same updates.
    """
    a, b = (read_metrics(directory)[0][:updates] for directory in (first, second))
    if not a or [x["step"] for x in a] != [x["step"] for x in b]:
        raise TrainingError(f"{first} logged {len(a)} updates and {second} {len(b)}: they cannot be compared")
    differences = [_difference(x["loss"], y["loss"]) for x, y in zip(a, b, strict=True)]
    largest = max(differences)
    return CurveDifference(largest, a[differences.index(largest)]["step"], len(a))


def plot_losses(runs: Mapping[str, Path], picture: Path) -> None:
    """Draw the training and validation losses of several runs.

    Args:
        runs: output directory by label.
        picture: the PNG to write.
    """
    draw_losses(runs).savefig(picture, dpi=120)


def draw_losses(runs: Mapping[str, Path]) -> Figure:
    """The figure that `plot_losses` writes.

    Each run has a line of its training losses, with a gap where a loss is not a finite number, and beside it
    the points of its validation losses, if it has any.

    Args:
        runs: output directory by label.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    styles: Sequence[dict[str, Any]] = ({"linewidth": 3, "alpha": 0.4}, {"linewidth": 1})
    for i, (label, directory) in enumerate(runs.items()):
        train, evaluations = read_metrics(directory)
        (line,) = axes.plot(*_points(train, "loss"), label=label, **styles[min(i, 1)])
        if evaluations:
            marks = {"marker": "ox"[i % 2], "linestyle": "none", "color": line.get_color()}
            axes.plot(*_points(evaluations, "eval_loss"), label=f"{label}, validation", **marks)
    axes.set(xlabel="update", ylabel="loss", title="The same job spec in both frameworks")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [x["step"] for x in lines], [math.nan if x[name] is None else x[name] for x in lines]


def _difference(first: float | None, second: float | None) -> float:
    # What is not a number must not win or lose a comparison in silence: it counts as infinitely far.
    if first is None or second is None:
        return math.inf
    if first == second:
        return 0.0
    return abs(first - second) / abs(first) if first else math.inf
