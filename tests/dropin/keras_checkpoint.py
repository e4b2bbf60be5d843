"""`callbacks.Checkpoint` on real ranks: positions, damage, what travels, and states of earlier versions."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import horovod.tensorflow as horovods
import keras
import numpy as np
from safetensors.numpy import load_file, save_file

import hvdtrain.keras as hvd
from hvdtrain.core.checkpoints.listing import list_checkpoints
from hvdtrain.core.checkpoints.state import layout_of
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.keras import callbacks
from hvdtrain.keras.attach import engines_of
from hvdtrain.tensorflow import dataset, world
from tests.dropin import keras_cases as cases
from tests.dropin.keras_loader import Rows
from tests.dropin.keras_misuse import raises


class Stop(keras.callbacks.Callback):
    """Leaves `fit` after so many batches."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._left = batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt


class Losses(keras.callbacks.Callback):
    """This rank's loss of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.reset_metrics()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.found.append(logs["loss"])


def fit(
    directory: str, stop: int | None = None, more: Sequence[Any] = (), **options: Any
) -> tuple[keras.Model, list[float]]:
    compression = options.pop("compression", {"type": "topk", "ratio": 0.3})
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.Adam(0.05), compression=compression, average="samples"
    )
    made, data, losses = cases.model(dropout=0.2), dataset(Rows(), 8, seed=3), Losses()
    made.compile(optimizer, loss=cases.loss())
    kept = callbacks.Checkpoint(directory, dataset=data, save_steps=2, **options)
    given = [callbacks.BroadcastGlobalVariables(0), losses, *more, kept, *([Stop(stop)] if stop else [])]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Your input ran out of data")
        try:
            made.fit(data, epochs=3, verbose=0, shuffle=False, callbacks=given)
        except KeyboardInterrupt:
            kept.on_train_end()
    # It is restored: nothing of it is open, or deleting it would free no space.
    assert f"{directory}/checkpoint-" not in Path("/proc/self/maps").read_text()
    hvd.allgather_object(None)
    return made, losses.found


@functools.cache
def unbroken() -> tuple[keras.Model, list[float]]:
    return fit("whole")


def check_fit_goes_on_in_the_middle_of_an_epoch() -> None:
    whole, losses = unbroken()
    assert len(losses) == 9
    _, first = fit("stopped", stop=5)
    # After four updates: the fifth was lost.
    resumed, rest = fit("stopped")
    assert first[:4] + rest == losses
    cases.assert_same(resumed, whole, 0.0)
    listed = list_checkpoints(Path("stopped"), every_byte=True)
    assert [(each.step, each.state, each.framework, each.ranks) for each in listed] == [
        (step, "whole", "keras", hvd.size()) for step in (8, 9)
    ]
    assert listed[-1].loss is not None


def check_damaged_ones_are_skipped_and_false_begins_again() -> None:
    fit("damaged", stop=7)
    if hvd.rank() == 0:
        shutil.copytree("damaged", "again")
        with Path("damaged/checkpoint-6/rank-1.safetensors").open("r+b") as file:
            file.seek(200)
            file.write(b"\0\1\2")
    hvd.allgather_object(None)
    with raises(CheckpointError, "checkpoint-6/rank-1.safetensors: is damaged"):
        fit("damaged", resume="damaged/checkpoint-6")
    assert len(fit("damaged")[1]) == 5
    assert len(fit("again", resume=False, save_total_limit=1)[1]) == 9
    assert [path.name for path in Path("again").glob("checkpoint-*")] == ["checkpoint-9"]


def check_a_ranks_residuals_stay_with_it() -> None:
    """It was once that every rank received those of all."""
    wide = keras.layers.Dense(300, dtype="float64")
    model = keras.Sequential([keras.Input((cases.FEATURES,), dtype="float64"), wide])
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.SGD(0.1), compression={"type": "topk", "ratio": 0.1}
    )
    model.compile(optimizer, loss="mse")
    kept = callbacks.Checkpoint("large")
    x = np.random.default_rng(hvd.rank()).normal(size=(4, cases.FEATURES))
    model.fit(x, np.zeros((4, 300)), verbose=0, callbacks=[callbacks.BroadcastGlobalVariables(0), kept])
    (engine,) = engines_of(model)
    residuals = [array for state in engine.gradients.driver.read() for array in state.values()]
    with received() as messages:
        kept.save(2)
    kept.on_train_end()
    hvd.allgather_object(None)
    assert max(messages) < 3000 < sum(array.nbytes for array in residuals)
    (newest,) = Path("large").glob("checkpoint-*")
    mine = load_file(newest / f"rank-{hvd.rank()}.safetensors")
    kept_arrays = [mine[name] for name in sorted(mine) if name.startswith("compression")]
    for ours, theirs in zip(kept_arrays, residuals, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@contextmanager
def received() -> Iterator[list[int]]:
    """Bytes of what this rank gets from others by each collective."""
    found: list[int] = []
    # Gathering goes through a graph.
    places = ((horovods, "allreduce"), (horovods, "broadcast"), (world, "_allgather"))
    plain = [(module, name, getattr(module, name)) for module, name in places]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            result = call(*arguments, **options)
            found.append(np.asarray(result).nbytes)
            return result

        return counting

    try:
        for module, name, call in plain:
            setattr(module, name, counted(call))
        yield found
    finally:
        for module, name, call in plain:
            setattr(module, name, call)


def check_a_state_of_an_earlier_version_is_read() -> None:
    """As that version wrote it, with half a window under way."""
    parts = cases.shares(cases.batches([4] * 6))

    def run(directory: str, epochs: int) -> keras.Model:
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.Adam(0.05),
            compression={"type": "topk", "ratio": 0.3},
            gradient_accumulation_steps=2,
        )
        given = [callbacks.BroadcastGlobalVariables(0), callbacks.Checkpoint(directory)]
        return cases.train(optimizer, parts, epochs=epochs, callbacks=given)[0]

    model = run("newer", 3)
    (engine,) = engines_of(model)
    gradients = engine.gradients
    if hvd.rank() == 0:
        newest, old = max(Path("newer").glob("checkpoint-*")), Path("older")
        old.mkdir()
        for name in ("model.safetensors", "optimizer.safetensors"):
            shutil.copy(newest / name, old)
        every = {}
        for rank in range(hvd.size()):
            for name, array in load_file(newest / f"rank-{rank}.safetensors").items():
                kind, _, rest = name.partition(".")
                if kind == "compression":
                    every[f"{rank}.bucket{rest}"] = array
                elif kind == "window":
                    every[f"{rank}.window.{rest}"] = array
        save_file(every, old / "ranks.safetensors")
        layout = layout_of([bucket.layout for bucket in gradients.buckets], gradients.settings.rules)
        record = {"epoch": 3, "ranks": hvd.size(), "layout": layout}
        (old / "state.json").write_text(json.dumps(record))
    hvd.allgather_object(None)
    cases.assert_same(run("older", 5), run("newer", 5), 0.0)
    hvd.allgather_object(None)
    assert any(path.name == "manifest.json" for path in max(Path("older").glob("checkpoint-*")).iterdir())


def check_bad_arguments_are_named() -> None:
    for given, said in (
        ({"save_steps": 2}, "give dataset="),
        ({"save_steps": 0}, "save_steps: expected an integer above 0"),
        ({"save_epochs": 0}, "save_epochs: expected an integer above 0"),
        ({"save_total_limit": -1}, "save_total_limit: expected an integer above 0"),
        ({"dataset": Rows()}, "dataset: expected what hvdtrain.keras.dataset makes (found Rows)"),
    ):
        with raises(SpecError, said):
            callbacks.Checkpoint("state", **given)


def check_accumulation_may_be_turned_on() -> None:
    parts = cases.shares(cases.batches([4] * 6))
    for steps, applied in ((1, 3), (2, 4)):
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.SGD(0.1), gradient_accumulation_steps=steps, average="samples"
        )
        given = [callbacks.BroadcastGlobalVariables(0), callbacks.Checkpoint("windows")]
        model, _ = cases.train(optimizer, parts, epochs=steps, callbacks=given)
        (engine,) = engines_of(model)
        assert engine.gradients.applied == applied
        hvd.allgather_object(None)
