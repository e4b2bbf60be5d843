"""Points of which none counts in the second update."""

from __future__ import annotations

from tests.own.data import TRAIN, Arrays, points
from tests.own.jobs import batches


def make() -> tuple[Arrays, Arrays]:
    """As `data.points`."""
    train, evaluation = points()
    count = train["count"] + 1
    _, second = (indices for indices, _ in zip(batches(TRAIN), range(2), strict=False))
    count[second] = 0
    return train | {"count": count}, evaluation
