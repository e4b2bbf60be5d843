"""A task that this package does not know: rows of numbers, and which of two classes each is of."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from hvdtrain.core.data import Batch, Dataset
from hvdtrain.core.random import generator
from hvdtrain.core.spec.sections import DataSection, TaskSection
from hvdtrain.core.tasks.task import Shapes


class TaskSpec(TaskSection):
    """Nothing to choose."""

    type: Literal["regression"] = "regression"


class DataSpec(DataSection):
    """How many rows there are."""

    rows: int = 8


class Rows:
    """Rows from the first on."""

    def __init__(self, first: int, count: int, width: int, seed: int) -> None:
        x = generator(seed, "outsider").normal(size=(first + count, width))[first:]
        self.x, self.y = x, (x.sum(axis=1) > 0).astype(np.int32)
        self.costs = np.ones(count, np.int64)

    def __len__(self) -> int:
        return len(self.x)

    def collate(self, indices: np.ndarray, epoch: int, rows: int) -> Batch:
        del epoch
        x, y, weights = np.zeros((rows, self.x.shape[1])), np.zeros((rows, 1), np.int32), np.zeros((rows, 1))
        x[: len(indices)], y[: len(indices), 0] = self.x[indices], self.y[indices]
        weights[: len(indices)] = 1.0
        counts = {"tokens": len(indices), "samples": len(indices)}
        return Batch({"x": x}, y, weights, float(len(indices)), counts)


def _prepare(model: Any, data: Any, task: Any, seed: int, announce: Callable[[str], None]) -> Dataset:
    del task
    announce(f"{data.rows} rows")
    return Dataset(
        Rows(0, data.rows, model.width, seed), Rows(data.rows, 4, model.width, seed), f"{data.rows}"
    )


Regression = SimpleNamespace(
    TaskSpec=TaskSpec,
    DataSpec=DataSpec,
    check=lambda model, data: None,
    shapes=lambda data, task: Shapes(1, 1),
    prepare=_prepare,
    summarise=lambda mean_loss: {},
)
