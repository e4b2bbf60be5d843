"""Checks on two ranks: what happens inside `fit`, callbacks, loss scale, and state on disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import hvdtrain.keras as hvd
from hvdtrain.core.errors import HvdtrainError, SpecError, TrainingError
from hvdtrain.keras import callbacks
from hvdtrain.keras.optimizer import engine_of
from hvdtrain.tensorflow import DistributedGradientTape
from tests.dropin import keras_cases as cases
from tests.dropin.keras_arguments import shares, windows

sgd = keras.optimizers.SGD


def check_all_ranks_start_from_the_root() -> None:
    parts = cases.batches([4] * 4)
    optimizer = hvd.DistributedOptimizer(sgd(0.1 + hvd.rank()))
    ours, _ = cases.train(
        optimizer,
        shares(parts),
        cases.model(seed=hvd.rank()),
        callbacks=[callbacks.BroadcastGlobalVariables(1)],
    )
    cases.assert_same(ours, cases.train_alone(sgd(1.1), windows(parts, 2), cases.model(seed=1)), 1e-6)


def check_metrics_are_those_of_all_samples() -> None:
    parts = cases.batches([4, 4, 4, 3, 2, 1])
    validation = cases.batches([7, 2], seed=9)
    made = cases.model()
    metrics = lambda: ["accuracy", keras.metrics.SparseCategoricalCrossentropy(from_logits=True)]  # noqa: E731
    made.compile(hvd.DistributedOptimizer(sgd(0.0)), loss=cases.loss(), metrics=metrics())
    mine = shares(parts)
    history = made.fit(
        cases.feed(mine),
        steps_per_epoch=len(mine),
        verbose=0,
        callbacks=[callbacks.BroadcastGlobalVariables(0), callbacks.MetricAverage()],
        validation_data=validation[hvd.rank()],
    ).history
    made.compile(sgd(0.0), loss=cases.loss(), metrics=metrics())
    for prefix, data in (("", parts), ("val_", validation)):
        expected = made.evaluate(*cases.joined(data), verbose=0, return_dict=True)
        for name, value in expected.items():
            assert history[prefix + name] == [pytest.approx(value, rel=1e-6)], prefix + name


class OwnStep(keras.Model):
    """Returns a value that no metric knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = cases.model()

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.inside(x)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        super().train_step(data)
        return {"mine": tf.reduce_mean(data[0])}


def check_values_of_an_own_step_are_weighted_by_samples() -> None:
    part = cases.batches([4, 2])[hvd.rank()]
    made = OwnStep()
    made.compile(hvd.DistributedOptimizer(sgd(0.1)), loss=cases.loss())
    history = made.fit(
        cases.feed([part]), steps_per_epoch=1, verbose=0, callbacks=[callbacks.MetricAverage()]
    ).history
    assert history["mine"] == [pytest.approx(np.mean(cases.joined(cases.batches([4, 2]))[0]), rel=1e-6)]


class Rates(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.found.append(float(self.model.optimizer.learning_rate.numpy()))


def check_the_warm_up() -> None:
    rates = Rates()
    optimizer = hvd.DistributedOptimizer(sgd(0.4))
    warm = callbacks.LearningRateWarmup(initial_lr=0.4, warmup_epochs=2)
    later = callbacks.LearningRateSchedule(initial_lr=0.4, multiplier=0.1, start_epoch=2)
    _, history = cases.train(
        optimizer,
        cases.batches([4] * 3),
        epochs=4,
        callbacks=[callbacks.BroadcastGlobalVariables(), warm, later, rates],
    )
    # Six batches from half the rate, exclusive, to the whole; then 0.4 * 0.1^(epoch - 2).
    expected = [0.2 + 0.2 * i / 6 for i in range(1, 7)] + [0.4] * 3 + [0.04] * 3
    np.testing.assert_allclose(rates.found, expected, rtol=1e-6)
    np.testing.assert_allclose(history["lr"], [0.3, 0.4, 0.4, 0.04], rtol=1e-6)


def check_momentum_follows_the_learning_rate() -> None:
    parts = cases.batches([4] * 4)
    schedule = callbacks.LearningRateSchedule(0.1, lambda epoch: [1.0, 0.2][epoch])
    ours, _ = cases.train(
        hvd.DistributedOptimizer(sgd(0.1, momentum=0.9)),
        shares(parts[:2]),
        epochs=2,
        callbacks=[callbacks.BroadcastGlobalVariables(), schedule],
    )
    # v = 0.9 v + g without rates in it, as in Goyal et al.'s reference.
    alone = cases.model()
    velocity = [np.zeros_like(w) for w in alone.get_weights()]
    for rate in (0.1, 0.02):
        before = alone.get_weights()
        cases.train_alone(sgd(1.0), windows(parts[:2], 2), made=alone)
        gradients = [b - a for b, a in zip(before, alone.get_weights(), strict=True)]
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        alone.set_weights([b - np.float32(rate) * v for b, v in zip(before, velocity, strict=True)])
    cases.assert_same(ours, alone, 1e-7)


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
    weights, residuals = made.get_weights(), engine_of(hidden).gradients.read()
    bad = second[0].copy()
    if hvd.rank() == 1:
        bad[0, 0] = np.inf
    fit(bad, second[1])
    for before, after in zip(weights, made.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    for before, after in zip(residuals, engine_of(hidden).gradients.read(), strict=True):
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
        found.append(engine_of(inner).gradients.read()[0]["residual"])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)


LOAD = """
import sys
class Blocked:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("hvdtrain", "horovod"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import keras, numpy as np
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
    loaded = hvd.load_model(path, max_grad_norm=10.0)
    loaded.fit(
        *shares(parts[2:])[0], batch_size=4, verbose=0, callbacks=[callbacks.BroadcastGlobalVariables(0)]
    )
    after = np.load("after.npz")
    for name, weight in zip(after.files, loaded.get_weights(), strict=True):
        np.testing.assert_allclose(weight, after[name], rtol=1e-12, atol=1e-12)


def _plain_environment() -> dict[str, str]:
    import os

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
    files = {file.name for file in Path("state").iterdir()}
    assert files == {"model.safetensors", "optimizer.safetensors", "ranks.safetensors", "state.json"}


def check_a_damaged_or_foreign_checkpoint_is_told() -> None:
    parts = shares(cases.batches([4] * 2))
    adam = lambda: hvd.DistributedOptimizer(keras.optimizers.Adam(0.05))  # noqa: E731
    given = [callbacks.BroadcastGlobalVariables(0), callbacks.Checkpoint("foreign")]
    cases.train(adam(), parts, callbacks=given)
    wide = keras.Sequential([keras.Input((cases.FEATURES,)), keras.layers.Dense(9)])
    with raises(HvdtrainError, "was saved with other weights"):
        cases.train(adam(), parts, wide, epochs=2, callbacks=given)


def check_the_best_model_is_kept() -> None:
    best = callbacks.BestModel(f"best{hvd.rank()}.keras", monitor="loss")
    rates = callbacks.LearningRateSchedule(0.1, lambda epoch: [1.0, 1.0, -40.0][epoch])
    given = [callbacks.BroadcastGlobalVariables(0), callbacks.MetricAverage(), best, rates]
    parts = shares(cases.batches([4] * 2))
    _, history = cases.train(hvd.DistributedOptimizer(sgd(0.1)), parts, epochs=3, callbacks=given)
    assert best.best == min(history["loss"])
    assert Path(f"best{hvd.rank()}.keras").exists() == (hvd.rank() == 0)
    if hvd.rank() == 0:
        assert isinstance(keras.models.load_model("best0.keras"), keras.Sequential)


def check_the_progress_is_rank_0s() -> None:
    made = cases.model()
    made.compile(hvd.DistributedOptimizer(sgd(0.1)), loss=cases.loss())
    bar = callbacks.ProgressBar()
    made.fit(*cases.batches([4])[0], callbacks=[bar])
    assert bar.verbose == (2 if hvd.rank() == 0 else 0)


@contextmanager
def raises(kind: type[BaseException], text: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert text in str(caught.value), str(caught.value)


def check_weights_that_differ_are_told() -> None:
    parts = shares(cases.batches([4] * 2))
    told = "add hvdtrain.keras.callbacks.BroadcastGlobalVariables"
    for given, kind in (([callbacks.MetricAverage()], TrainingError), ([], tf.errors.OpError)):
        with raises(kind, told):
            cases.train(
                hvd.DistributedOptimizer(sgd(0.1)),
                parts * 2,
                cases.model(seed=hvd.rank()),
                callbacks=given,
            )


def check_another_model_on_one_rank_is_told() -> None:
    layers = [keras.layers.Dense(5 + hvd.rank(), dtype="float64"), keras.layers.Dense(3, dtype="float64")]
    for given in ([callbacks.BroadcastGlobalVariables(0)], []):
        made = keras.Sequential([keras.Input((cases.FEATURES,), dtype="float64"), *layers])
        with raises(TrainingError, "every rank must build the same model"):
            cases.train(
                hvd.DistributedOptimizer(sgd(0.1)), shares(cases.batches([4] * 2)), made, callbacks=given
            )


def check_other_arguments_on_one_rank_are_told() -> None:
    optimizer = hvd.DistributedOptimizer(sgd(0.1), max_grad_norm=1.0 + hvd.rank())
    with raises(TrainingError, "max_grad_norm is 1.0 on rank 0, but 2.0 on rank 1"):
        cases.train(optimizer, shares(cases.batches([4] * 2)))


def check_wrong_arguments_are_told() -> None:
    for arguments, told in (
        ({"compression": "int7"}, "int8"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"average": "median"}, "average"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"accumulate": 2}, "unknown argument accumulate"),
        ({"op": 99}, "op: expected Average, Sum or Adasum"),
        ({"compression": "local_sgd"}, "exchanges weights between updates"),
        ({"backward_passes_per_step": 2, "gradient_accumulation_steps": 2}, "mean the same"),
    ):
        with raises(SpecError, told):
            hvd.DistributedOptimizer(sgd(0.1), **arguments)
    with raises(SpecError, "added up twice"):
        hvd.DistributedOptimizer(sgd(0.1, gradient_accumulation_steps=2), gradient_accumulation_steps=2)
    optimizer = hvd.DistributedOptimizer(sgd(0.1))
    with raises(SpecError, "wrap it once"):
        hvd.DistributedOptimizer(optimizer)
    with raises(SpecError, "backward_passes_per_step"):
        DistributedGradientTape(tf.GradientTape(), backward_passes_per_step=2)


def check_samples_that_are_not_known_are_told() -> None:
    optimizer = hvd.DistributedOptimizer(sgd(0.1), average="samples")
    with raises(TrainingError, "optimizer.batch_samples"):
        cases.train(optimizer, shares(cases.batches([4] * 2)), callbacks=[])


def check_xla_is_refused() -> None:
    with raises(TrainingError, "jit_compile=False"):
        cases.train(hvd.DistributedOptimizer(sgd(0.1)), shares(cases.batches([4] * 2)), jit_compile=True)
