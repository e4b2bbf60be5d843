"""Comparing runs: how far loss curves differ, and their picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.metrics import read_metrics


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
    differences = [abs(x["loss"] - y["loss"]) / abs(x["loss"]) for x, y in zip(a, b, strict=True)]
    # NaN must not win or lose a comparison in silence: it counts as infinitely far.
    differences = [float("inf") if math.isnan(d) else d for d in differences]
    largest = max(differences)
    return CurveDifference(largest, a[differences.index(largest)]["step"], len(a))


def plot_losses(runs: Mapping[str, Path], picture: Path) -> None:
    """Draw the training and validation losses of several runs.

    Args:
        runs: output directory by label.
        picture: the PNG to write.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    styles: Sequence[dict[str, Any]] = ({"linewidth": 3, "alpha": 0.4}, {"linewidth": 1})
    for i, (label, directory) in enumerate(runs.items()):
        train, evaluations = read_metrics(directory)
        style = styles[min(i, 1)]
        (line,) = axes.plot([x["step"] for x in train], [x["loss"] for x in train], label=label, **style)
        points = [(x["step"], x["eval_loss"]) for x in evaluations]
        axes.plot(
            *zip(*points, strict=True), "ox"[i % 2], color=line.get_color(), label=f"{label}, validation"
        )
    axes.set(
        xlabel="update", ylabel="loss (nats per masked token)", title="The same job spec in both frameworks"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)
