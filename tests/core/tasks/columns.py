"""Data and losses of a user's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from hvdtrain.core.data import Dataset
from hvdtrain.core.tasks import custom
from hvdtrain.core.tasks.custom import DataSpec, TaskSpec

N = 29
X = np.random.default_rng(0).normal(size=(N, 3))
Y = np.random.default_rng(1).integers(0, 4, N)
COLUMNS = {"x": X, "labels": Y}


def prepare(dataset: Any, task: TaskSpec | None = None, seed: int = 5, **fields: Any) -> Dataset:
    objects = {name: fields.pop(name) for name in ("eval_dataset", "collate_fn") if name in fields}
    data = DataSpec(**fields).model_copy(update={"dataset": dataset, **objects})
    return custom.prepare(None, data, task or TaskSpec(), seed, said.append)


said: list[str] = []


def own_loss(outputs: Any, batch: Any) -> Any:
    return outputs


def with_loss(loss: Any, **fields: Any) -> TaskSpec:
    return TaskSpec(**fields).model_copy(update={"loss": loss})


def numbered(first: int, count: int) -> dict[str, Any]:
    return {"x": np.zeros((count, 2)), "labels": np.arange(first, first + count)}


# Its sections.

SPEC = """
model: {model_type: tests.outsider.family}
data: {dataset: "my_data:make", args: {n: 3, ids: [a]}, eval_dataset: "my_data:E.make", collate_fn: "my:pad"}
task: {type: custom, loss: "my_data:loss", metrics: [accuracy, "my_data:f1"], label_names: [labels, spans]}
batch: {per_device_train_batch_size: 2}
max_steps: 4
"""
