"""A small dataset of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

N = 11
X = np.random.default_rng(0).normal(size=(N, 2, 3))
Y = np.random.default_rng(1).integers(0, 4, N)


class Items:
    """Any object with a length that is read by index."""

    def __init__(self, make: Callable[[int], Any], count: int = N) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def pad(items: list[dict[str, Any]]) -> dict[str, Any]:
    width = max(len(item["ids"]) for item in items)
    ids = [np.pad(item["ids"], (0, width - len(item["ids"]))) for item in items]
    return {"ids": np.stack(ids), "labels": np.array([item["labels"] for item in items])}


RAGGED = [{"ids": np.arange(1, 2 + i), "labels": i, "text": "dropped"} for i in range(N)]
