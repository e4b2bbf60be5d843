"""mistakes.py FRAMEWORK OUT: makes every mistake of `CASES` in one launch; each rank leaves what it was told.

mistakes.py FRAMEWORK OUT NAME: makes one of them by `hvdtrain.train`, as a program of a user's does.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import hvdtrain
from hvdtrain.core.errors import HvdtrainError
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.run.own_job import OwnCode, own_spec
from hvdtrain.core.run.script import join_and_train
from tests.jobs.runs import start_sooner

RANK = launched_rank() or 0
ROWS = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
LABELS = np.arange(24) % 3
GOOD: dict[str, Any] = {"x": ROWS, "labels": LABELS}
SPEC: dict[str, Any] = {
    "batch": {"per_device_train_batch_size": 4},
    "max_steps": 5,
    "num_threads": 1,
    "logging": {"tensorboard": False, "progress_bar": False},
}


class Items:
    """Samples by a function."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self._item = item

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> Any:
        return self._item(index)


class Breaks(Items):
    """A dataset whose samples cannot be read on rank 1 from its third update on."""

    def __init__(self) -> None:
        super().__init__(lambda index: {"x": ROWS[index], "labels": LABELS[index]})
        self._batches = 0

    def __getitems__(self, indices: list[int]) -> list[Any]:
        # Not the samples that are looked at before the first update.
        self._batches += len(indices) == 4
        if RANK == 1 and self._batches >= 3:
            raise OSError("the disk of rank 1 is gone")
        return [self[index] for index in indices]


def _raises(**arguments: Any) -> Any:
    raise RuntimeError("no weights today")


def _raises_on_rank_1(good: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: good() if RANK == 0 else _raises()


def torch_parts() -> dict[str, Any]:
    """What the cases are made of, in PyTorch."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, outputs: int = 3, width: int = 8, idle: bool = False) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, width), nn.Linear(width, outputs)
            self.idle = nn.Linear(2, 2) if idle else None
            self.register_buffer("table", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.tanh(self.first(x)))

    class Borrows(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(torch.tanh(self.first(x)), self.second.weight)

    def other_buffer() -> nn.Module:
        net = Net()
        net.table = torch.zeros(3 + RANK)
        return net

    def frozen() -> nn.Module:
        return Net().requires_grad_(False)

    def losses(outputs: Any, batch: Any) -> Any:
        return nn.functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def broadcast(outputs: Any, batch: Any) -> Any:
        return losses(outputs, batch).mean().expand(len(outputs))

    return locals()


def tensorflow_parts() -> dict[str, Any]:
    """What the cases are made of, in TensorFlow."""
    import keras
    import tensorflow as tf
    from keras import layers

    def Net(outputs: int = 3, width: int = 8, idle: bool = False, table: int = 3, **first: Any) -> Any:
        class Net(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.first = layers.Dense(width, "tanh", name="first", **first)
                self.second = layers.Dense(outputs, name="second")
                self.idle = layers.Dense(2, name="idle") if idle else None
                self.table = self.add_weight(shape=(table,), trainable=False, name="table")

            def call(self, x: Any) -> Any:
                if self.idle is not None and not self.idle.built:
                    self.idle.build((None, 2))
                return self.second(self.first(x))

        return Net()

    def other_buffer() -> Any:
        return Net(table=3 + RANK)

    def frozen() -> Any:
        net = Net()
        net(ROWS)
        net.trainable = False
        return net

    def losses(outputs: Any, batch: Any) -> Any:
        return tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], outputs)

    def broadcast(outputs: Any, batch: Any) -> Any:
        return tf.fill([outputs.shape[0]], tf.reduce_mean(losses(outputs, batch)))

    def regularised() -> Any:
        return Net(kernel_regularizer="l2")

    return locals()


def cases(framework: str) -> dict[str, dict[str, Any]]:
    """Arguments of `hvdtrain.train` by the name of a mistake, beside good ones."""
    parts = torch_parts() if framework == "torch" else tensorflow_parts()
    net, losses = parts["Net"], parts["losses"]
    other = "tensorflow" if framework == "torch" else "torch"

    def mean(outputs: Any, batch: Any) -> Any:
        found = losses(outputs, batch)
        return sum(found[i] for i in range(found.shape[0])) / found.shape[0]

    def mean_in_pair(outputs: Any, batch: Any) -> Any:
        return mean(outputs, batch), 1.0

    def rows_in_pair(outputs: Any, batch: Any) -> Any:
        return losses(outputs, batch), batch["labels"]

    def pair(outputs: Any, batch: Any) -> Any:
        return mean(outputs, batch) * outputs.shape[0], outputs.shape[0]

    def buggy(outputs: Any, batch: Any) -> Any:
        return losses(outputs, batch["nothing"])

    def model(make: Any, **more: Any) -> dict[str, Any]:
        return {"model": make, **more}

    def loss(function: Any, **more: Any) -> dict[str, Any]:
        return {"loss": function, **more}

    def spec(**sections: Any) -> dict[str, Any]:
        return {"spec": {**SPEC, **sections}}

    data = {"x": ROWS + (RANK == 1), "labels": LABELS}
    found = {
        "good": {},
        "mean": loss(mean),
        "mean in a pair": loss(mean_in_pair),
        "mean for each": loss(parts["broadcast"]),
        "rows in a pair": loss(rows_in_pair),
        "buggy loss": loss(buggy),
        "buggy metric": {"metrics": [buggy]},
        "unknown loss": loss("cross_entrop"),
        "pair and adasum": loss(pair, **spec(compression={"type": "adasum"})),
        "unused": model(lambda: net(idle=True)),
        "other data": {"train_dataset": data},
        "other shapes": model(lambda: net(width=8 + RANK)),
        "other weights": model(lambda: net(idle=RANK == 1), **spec(model={"find_unused_parameters": True})),
        "other buffer": model(parts["other_buffer"]),
        "no array": {"train_dataset": Items(lambda index: {"x": object(), "labels": 0})},
        "text": {"train_dataset": Items(lambda index: "a text")},
        "frozen": model(parts["frozen"]),
        "two models": spec(model={framework: "some:model"}),
        "packaged model": spec(model={"model_type": "bert"}),
        "instance": model(net()),
        "no function": model(3),
        "builder raises": model(_raises),
        "builder takes more": spec(model={"args": {"depth": 3}}),
        "no model": model(lambda: ROWS),
        "wrong outputs": model(lambda: net(outputs=1), **loss("mse")),
        "wrong rows": model(lambda: net(outputs=1), **loss("bce_with_logits")),
        "other framework": {"model": None, **spec(model={other: "tests.own.nowhere:build"})},
        "no such module": {"model": None, **spec(model={framework: "tests.own.nowhere:build"})},
        "wrong names": spec(model={"names": {"first": "first", "third": "third"}}),
        "other inputs": {"train_dataset": {"y": ROWS[:, :2], "labels": LABELS}},
    }
    if framework == "tensorflow":
        found["regularizer"] = model(parts["regularised"])
        found["gathered"] = spec(zero_stage=3)
    else:
        found["gathered"] = model(parts["Borrows"], **spec(zero_stage=3))
    # One rank finds these out, which ends the whole job: they are made one at a time.
    alone = {
        "other folder": spec(model={"init_from": str(Path(sys.argv[2]).parent / "good" / "model")})
        | model(lambda: net(width=9)),
        "no folder": spec(model={"init_from": str(Path(sys.argv[2]).parent / "nowhere")}),
        "builder raises on rank 1": model(_raises_on_rank_1(net)),
        "data breaks on rank 1": {"train_dataset": Breaks()},
    }
    good = {"spec": SPEC, "model": net, "train_dataset": GOOD, "loss": "cross_entropy"}
    return {name: good | each for name, each in (found if len(sys.argv) < 4 else found | alone).items()}


def told(framework: str, out: Path) -> dict[str, str]:
    """What this rank is told of each mistake, or where its result lies."""
    loaded, found = importlib.import_module(f"hvdtrain.{framework}.job").load(), {}
    for name, arguments in cases(framework).items():
        given = dict(arguments)
        try:
            spec = own_spec(given.pop("spec"), framework, OwnCode(**given))
            found[name] = f"done: {join_and_train(loaded, spec, out / name, None).model_dir}"
        except HvdtrainError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    start_sooner()
    if len(sys.argv) > 3:
        hvdtrain.train(framework=sys.argv[1], output_dir=sys.argv[2], **cases(sys.argv[1])[sys.argv[3]])  # type: ignore[arg-type]
    else:
        place = Path(sys.argv[2])
        (place / f"rank{RANK}.json").write_text(json.dumps(told(sys.argv[1], place)))
