"""From turns to medians and ratios, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.table import Table

from hvdtrain.core.tables import Kind, make_table
from side_by_side.competitors import Competitor
from side_by_side.conductor import Turn


@dataclass(frozen=True)
class Result:
    """What was measured of one competitor.

    Attributes:
        name: the competitor.
        median_ms: of all its timed steps.
        ratio: its median over ours of the same round, the median over rounds; above 1 it is slower.
        ratio_low: smallest ratio of a round.
        ratio_high: largest ratio of a round.
        round_ms: median of each round.
        loss_difference: largest relative difference of its losses from ours; None when its ranks train apart.
    """

    name: str
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    round_ms: tuple[float, ...]
    loss_difference: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def summarise(turns: Sequence[tuple[Competitor, Turn]]) -> list[Result]:
    """Compare competitors with the first of them.

    Args:
        turns: of complete rounds, in the order they were taken.

    Returns:
        One result a competitor.
    """
    by_name: dict[str, list[Turn]] = {}
    linked: dict[str, bool] = {}
    for competitor, turn in turns:
        by_name.setdefault(competitor.name, []).append(turn)
        linked[competitor.name] = competitor.linked
    ours = next(iter(by_name.values()))
    return [_result(name, own, ours, linked[name]) for name, own in by_name.items()]


def as_table(title: str, results: Sequence[Result]) -> Table:
    """Results as a table, ours first."""
    numbers = ("step", "ratio", "of rounds", "loss off by")
    columns: dict[str, Kind] = {" ": "name", **dict.fromkeys(numbers, "number")}
    rows = [
        (
            r.name,
            f"{r.median_ms:.1f} ms",
            f"{r.ratio:.3f}",
            f"{r.ratio_low:.2f}-{r.ratio_high:.2f}",
            "-" if r.loss_difference is None else f"{r.loss_difference:.0e}",
        )
        for r in results
    ]
    return make_table(columns, rows, title)


def _result(name: str, own: Sequence[Turn], ours: Sequence[Turn], linked: bool) -> Result:
    rounds = [median(turn.seconds) for turn in own]
    ratios = [mine / median(turn.seconds) for mine, turn in zip(rounds, ours, strict=True)]
    every_step = [seconds for turn in own for seconds in turn.seconds]
    losses = [
        abs(a - b) / b
        for mine, turn in zip(own, ours, strict=True)
        for a, b in zip(mine.losses, turn.losses, strict=True)
    ]
    return Result(
        name=name,
        median_ms=1e3 * median(every_step),
        ratio=median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        round_ms=tuple(1e3 * seconds for seconds in rounds),
        loss_difference=max(losses) if linked else None,
    )
