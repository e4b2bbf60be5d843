"""What simulated runs came to: tables, a picture and a file of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from hvdtrain.bench.problems import Problem
from hvdtrain.bench.simulate import Outcome
from hvdtrain.core import strict_json
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.tables import Kind, make_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURE, _NUMBERS = "curves.png", "results.json"


def as_table(problem: Problem, outcomes: Sequence[Outcome]) -> Table:
    """One problem's outcomes, the first of them the measure of the others.

    Bytes are means over the updates of the run; the residuals' are those of one rank at its end.
    """
    size = sum(weight.size for weight in problem.weights)
    numbers = ("loss", "÷ none", "off optimum", "sent", "smaller", "received", "residuals", "time")
    columns: dict[str, Kind] = {"policy": "text", **dict.fromkeys(numbers, "number")}
    base = outcomes[0]
    updates = base.updates[-1]
    rows = [
        (
            outcome.policy,
            *_quality(outcome, base),
            _bytes(outcome.sent[-1] / updates),
            f"{base.sent[-1] / outcome.sent[-1]:.1f} x",
            _bytes(outcome.received[-1] / updates),
            _bytes(outcome.state_bytes),
            f"{outcome.seconds:.1f} s",
        )
        for outcome in outcomes
    ]
    return make_table(columns, rows, f"{problem.title}; {size:,} parameters")


def write(
    results: Mapping[str, Sequence[Outcome]], problems: Mapping[str, Problem], directory: Path
) -> tuple[Path, Path]:
    """Write the picture and the numbers.

    Args:
        results: outcomes by problem.
        problems: by name.
        directory: is made when missing.

    Returns:
        The PNG and the JSON file.

    Raises:
        TrainingError: when they cannot be written.
    """
    picture, numbers = directory / _PICTURE, directory / _NUMBERS
    record = [
        {"problem": name, "best_loss": problems[name].best, "outcomes": [o.as_dict() for o in outcomes]}
        for name, outcomes in results.items()
    ]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        numbers.write_text(strict_json.dumps(record, indent=2) + "\n", encoding="utf-8")
        draw(results, problems).savefig(picture, dpi=110)
    except OSError as error:
        raise TrainingError(f"--output-dir {directory}: cannot be written: {error}") from None
    return picture, numbers


def draw(results: Mapping[str, Sequence[Outcome]], problems: Mapping[str, Problem]) -> Figure:
    """The figure that `write` writes: each policy's losses over updates, bytes sent and bytes received.

    Args:
        results: outcomes by problem, a row of the figure each.
        problems: by name; where the least loss is known, what is drawn is how far above it a loss is.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5 * len(results)), layout="constrained")
    grid = figure.subplots(len(results), 3, squeeze=False, sharey="row")
    for row, (name, outcomes) in zip(grid, results.items(), strict=True):
        best = problems[name].best
        for outcome in outcomes:
            heights = [loss - (best or 0.0) for loss in outcome.losses]
            style = {"linewidth": 4, "alpha": 0.35} if outcome is outcomes[0] else {"linewidth": 1.3}
            for axes, across in zip(row, (outcome.updates, outcome.sent, outcome.received), strict=True):
                axes.plot(across, heights, label=outcome.policy, **style)
        row[0].set(xlabel="update", ylabel="loss" if best is None else "loss above the optimum's", title=name)
        row[1].set(xlabel="bytes sent by one rank", xscale="log", title=f"{outcomes[0].ranks} ranks")
        row[2].set(xlabel="bytes received by one rank", xscale="log")
        for axes in row:
            axes.grid(alpha=0.3)
            if best is not None:
                axes.set_yscale("log")
        row[0].legend(fontsize="small")
    return figure


def _quality(outcome: Outcome, base: Outcome) -> tuple[str, str, str]:
    loss = outcome.losses[-1]
    if not math.isfinite(loss):
        return "diverged", "-", "-"
    off = "-" if outcome.distance is None else f"{outcome.distance:.2e}"
    return f"{loss:.4f}", f"{loss / base.losses[-1]:.3f}", off


def _bytes(count: float) -> str:
    if count < 1024:
        return f"{count:.0f} B"
    return f"{count / 2**10:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"
