"""Checks on two ranks: loss scale inside `fit`, saved models, and state on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

import hvdtrain.keras as hvd
from hvdtrain.keras import callbacks
from hvdtrain.keras.optimizer import engine_of
from tests.dropin import keras_cases as cases
from tests.dropin.keras_cases import shares, windows

sgd = keras.optimizers.SGD


def check_a_local_infinity_skips_every_ranks_update() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        for place in ("outside", "inside", "by compile"):
            _skip_an_update(place)
    finally:
        keras.config.set_dtype_policy("float32")


def _skip_an_update(place: str) -> None:
    topk: dict[str, Any] = {"compression": {"type": "topk", "ratio": 0.2}}
    scaled = keras.optimizers.LossScaleOptimizer
    optimizer = {
        "outside": lambda: scaled(hvd.DistributedOptimizer(sgd(0.1), **topk), initial_scale=256.0),
        "inside": lambda: hvd.DistributedOptimizer(scaled(sgd(0.1), initial_scale=256.0), **topk),
        "by compile": lambda: hvd.DistributedOptimizer(sgd(0.1), **topk),
    }[place]()
    made = keras.Sequential([keras.Input((cases.FEATURES,)), keras.layers.Dense(cases.CLASSES)])
    made.set_weights([0.1 * np.ones(w.shape) for w in made.weights])
    made.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    first, second, third = shares(cases.batches([4] * 6, dtype="float32"))

    def fit(x: np.ndarray, y: np.ndarray) -> None:
        made.fit(x, y, verbose=0, batch_size=4, callbacks=[callbacks.MetricAverage()])

    fit(*first)
    hidden = made.optimizer
    scale = float(hidden.dynamic_scale.numpy())
    weights, residuals = made.get_weights(), [*engine_of(hidden).gradients.driver.read()]
    bad = second[0].copy()
    if hvd.rank() == 1:
        bad[0, 0] = np.inf
    fit(bad, second[1])
    for before, after in zip(weights, made.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(residuals, engine_of(hidden).gradients.driver.read(), strict=True):
        np.testing.assert_array_equal(before["residual"], after["residual"])
    assert float(hidden.dynamic_scale.numpy()) == scale / 2, place
    fit(*third)
    assert np.any(made.get_weights()[0] != weights[0])
    every = hvd.allgather(made.get_weights()[0][None])
    np.testing.assert_array_equal(every[0], every[1])


def check_the_loss_scale_is_not_in_the_residuals() -> None:
    parts = shares(cases.batches([4] * 2))
    found = []
    for scale in (None, 1024.0):
        inner = hvd.DistributedOptimizer(sgd(0.1), compression={"type": "topk", "ratio": 0.3})
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=scale) if scale else inner
        cases.train(optimizer, parts)
        found.append(next(engine_of(inner).gradients.driver.read())["residual"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


LOAD = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("hvdtrain", "horovod"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import keras, numpy as np
keras.config.set_floatx("float64")
made = keras.models.load_model("trained.keras")
data = np.load("next.npz")
made.fit(data["x"], data["y"], batch_size=len(data["x"]), verbose=0)
np.savez("after.npz", *made.get_weights())
"""


def check_a_saved_model_goes_on_without_hvdtrain() -> None:
    parts = cases.batches([4] * 4)
    adam = lambda: keras.optimizers.Adam(0.05, weight_decay=0.01)  # noqa: E731
    optimizer = hvd.DistributedOptimizer(adam(), max_grad_norm=10.0)
    assert type(optimizer) is keras.optimizers.Adam
    own = optimizer.get_config()
    assert own == adam().get_config() | {"name": own["name"]}
    made, _ = cases.train(optimizer, shares(parts[:2]))
    path = Path(f"trained{hvd.rank() or ''}.keras")
    made.save(path)
    x, y = cases.joined(parts[2:])
    if hvd.rank() == 0:
        np.savez("next.npz", x=x, y=y)
        subprocess.run([sys.executable, "-c", LOAD], check=True, timeout=120, env=_plain_environment())
    hvd.allgather_object("written")
    # Loaded by us, it goes on with both ranks' shares, as the other process did with the whole.
    # A loaded loss has lost its dtype, and `fit` casts arrays.
    keras.config.set_floatx("float64")
    try:
        loaded = hvd.load_model(path, max_grad_norm=10.0)
        given = [callbacks.BroadcastGlobalVariables(0)]
        loaded.fit(*shares(parts[2:])[0], batch_size=4, verbose=0, callbacks=given)
    finally:
        keras.config.set_floatx("float32")
    after = np.load("after.npz")
    for name, weight in zip(after.files, loaded.get_weights(), strict=True):
        np.testing.assert_allclose(weight, after[name], rtol=1e-12, atol=1e-12)


@keras.saving.register_keras_serializable("hvdtrain.tests")
class Subclassed(keras.Model):
    """Built by its first step, where it was not loaded."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.inside = keras.Sequential([keras.layers.Dense(5, dtype="float64")])
        self.norm = keras.layers.LayerNormalization(dtype="float64")
        self.out = keras.layers.Dense(cases.CLASSES, dtype="float64")

    def call(self, x: Any) -> Any:
        return self.out(self.norm(self.inside(x)))


def _subclassed() -> keras.Model:
    return Subclassed(dtype="float64")


def check_one_rank_loads_and_the_others_build() -> None:
    """As in Horovod's ImageNet example: after loading, Keras' variables have other names."""
    parts = cases.batches([4] * 6)
    for make in (cases.model, _subclassed):
        path = Path(f"loaded{hvd.rank()}.keras")
        made = make()
        made(parts[0][0])
        cases.train(hvd.DistributedOptimizer(keras.optimizers.Adam(0.05)), shares(parts[:2]), made)
        made.save(path)
        given = [callbacks.BroadcastGlobalVariables(0), callbacks.Checkpoint(f"state-{make.__name__}")]
        ours = hvd.load_model(path, gradient_accumulation_steps=2) if hvd.rank() == 0 else _compiled(make)
        ours.fit(cases.feed(shares(parts[2:])), steps_per_epoch=2, verbose=0, callbacks=given)
        alone = keras.models.load_model(path)
        cases.train_alone(alone.optimizer, windows(parts[2:], 4), alone)
        # The loss that Keras loads is in float32.
        cases.assert_same(ours, alone, 1e-6)
        # What a loaded model has saved, one that was built goes on from.
        again = _compiled(make)
        again(parts[0][0])
        again.fit(cases.feed(shares(parts[2:])), steps_per_epoch=2, verbose=0, callbacks=given)
        cases.assert_same(again, ours, 0.0)


def _compiled(make: Callable[[], keras.Model]) -> keras.Model:
    made = make()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.Adam(0.05), gradient_accumulation_steps=2)
    made.compile(optimizer, loss=cases.loss())
    return made


def _plain_environment() -> dict[str, str]:
    mpi = ("OMPI_", "PMIX_", "PMI_", "HOROVOD_")
    return {name: value for name, value in os.environ.items() if not name.startswith(mpi)}


def check_a_checkpoint_gives_the_same_next_loss() -> None:
    parts = shares(cases.batches([4] * 6))

    def run(directory: str | None, epochs: int) -> tuple[keras.Model, list[float]]:
        optimizer = hvd.DistributedOptimizer(
            keras.optimizers.Adam(0.05),
            compression={"type": "topk", "ratio": 0.3},
            gradient_accumulation_steps=2,
        )
        given = [callbacks.BroadcastGlobalVariables(0), callbacks.MetricAverage()]
        if directory:
            given.append(callbacks.Checkpoint(directory))
        made, history = cases.train(
            optimizer, parts, cases.model(seed=hvd.rank(), dropout=0.2), epochs=epochs, callbacks=given
        )
        return made, history["loss"]

    whole, losses = run(None, 4)
    # Three micro-batches an epoch, two a window: the checkpoint holds half a window.
    _, first = run("state", 3)
    resumed, rest = run("state", 4)
    assert first + rest == losses
    cases.assert_same(resumed, whole, 0.0)
    hvd.allgather_object("saved")
    files = {file.name for file in Path("state/checkpoint-6").iterdir()}
    names = {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}
    assert files == names | {"rank-0.safetensors", "rank-1.safetensors"}
