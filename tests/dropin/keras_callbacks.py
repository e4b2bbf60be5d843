"""Checks on two ranks: the callbacks, each against a formula or one process."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import hvdtrain.keras as hvd
from hvdtrain.keras import callbacks
from hvdtrain.keras.callbacks.adding import adds_up
from tests.dropin import keras_cases as cases
from tests.dropin.keras_cases import shares, windows

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


class Own(keras.metrics.Metric):
    """A metric with one variable, of the batch's largest first feature or however `update` takes it in."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.kept = self.add_variable((), "zeros", name="kept", dtype="float64")

    def result(self) -> Any:
        return self.kept + 0.0


class Most(Own):
    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        self.kept.assign(keras.ops.maximum(self.kept, keras.ops.max(found)))


class MostByAdding(Own):
    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        self.kept.assign_add(keras.ops.relu(keras.ops.max(found) - self.kept))


class Smoothed(Own):
    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        self.kept.assign(0.9 * self.kept + 0.1 * keras.ops.max(found))


class Last(Own):
    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        self.kept.assign(keras.ops.max(found))


class Total(Own):
    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        self.kept.assign_add(keras.ops.sum(found))


class TotalByAssigning(Own):
    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        self._take(keras.ops.sum(found))

    def _take(self, value: Any) -> None:
        self.kept.assign(self.kept + value)


class TotalByKeras(keras.metrics.Sum):
    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        super().update_state(found)


class TotalInside(keras.metrics.Metric):
    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.inside = keras.metrics.Sum(dtype="float64")

    def update_state(self, y: Any, found: Any, sample_weight: Any = None) -> None:
        self.inside.update_state(found)

    def result(self) -> Any:
        return self.inside.result()


def check_only_metrics_that_add_up_are_summed() -> None:
    parts = cases.batches([4, 4, 4, 3, 2, 1])
    kinds: list[Any] = [Total, TotalByAssigning, TotalByKeras, TotalInside]
    local: list[Any] = [Most, MostByAdding, Smoothed, Last]
    made = cases.model()

    def compile_with(optimizer: keras.optimizers.Optimizer) -> None:
        metrics = [kind(name=kind.__name__) for kind in (*kinds, *local)]
        made.compile(optimizer, loss=cases.loss(), metrics=metrics)

    compile_with(hvd.DistributedOptimizer(sgd(0.0)))
    mine = shares(parts)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = made.fit(
            cases.feed(mine),
            steps_per_epoch=len(mine),
            epochs=2,
            verbose=0,
            callbacks=[callbacks.BroadcastGlobalVariables(0), callbacks.MetricAverage()],
        ).history
    said = [str(each.message) for each in told if "MetricAverage" in str(each.message)]
    assert len(said) == (hvd.rank() == 0)
    assert all(f"'{kind.__name__}'" in each for each in said for kind in local)
    assert not any(f"'{kind.__name__}'" in each for each in said for kind in kinds)
    for chosen, data in ((kinds, parts), (local, mine)):
        compile_with(sgd(0.0))
        expected = made.fit(cases.feed(data), steps_per_epoch=len(data), verbose=0).history
        for kind in chosen:
            name = kind.__name__
            assert history[name] == [pytest.approx(expected[name][0], rel=1e-6)] * 2, name


def check_every_metric_of_keras_adds_up() -> None:
    kinds = [kind for kind in vars(keras.metrics).values() if isinstance(kind, type)]
    made = [_made(kind) for kind in kinds if kind is not keras.metrics.Metric]
    assert len(made) > 40
    for metric in made:
        first, second = (_batch_for(metric, seed) for seed in (1, 2))
        states = []
        for given in ([first], [second], [first, second]):
            metric.reset_state()
            for each in given:
                metric.update_state(*each)
            states.append([v.numpy() for v in metric.variables])
        for one, other, both in zip(*states, strict=True):
            np.testing.assert_allclose(one + other, both, rtol=1e-5, err_msg=metric.name)
        assert adds_up(metric), metric.name


ARGUMENTS: dict[str, dict[str, Any]] = {
    "IoU": {"num_classes": 3, "target_class_ids": [1]},
    "OneHotIoU": {"num_classes": 3, "target_class_ids": [1]},
    "MeanIoU": {"num_classes": 3},
    "OneHotMeanIoU": {"num_classes": 3},
    "MeanMetricWrapper": {"fn": keras.losses.mean_squared_error},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
}


def _made(kind: type) -> Any:
    return kind(**ARGUMENTS.get(kind.__name__, {}))


def _batch_for(metric: Any, seed: int) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 6)
    one_hot, scores = np.eye(3, dtype="float32")[labels], random.random((6, 3)).astype("float32")
    if type(metric).__name__ in ("Mean", "Sum"):
        return (scores,)
    if type(metric).__name__ in ("IoU", "MeanIoU"):
        return labels, random.integers(0, 3, 6)
    if type(metric).__name__.startswith("Sparse"):
        return labels, scores
    return one_hot, scores


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


def check_the_average_of_a_metric() -> None:
    weight, rank = [3.0, 1.0][hvd.rank()], hvd.rank()
    assert hvd.metric_average(float(rank), weight) == 0.25
    found = hvd.metric_average({"a": 2.0 * rank, "b": 1.0}, weight, name="two")
    assert found == {"a": 0.5, "b": 1.0}
    assert hvd.metric_average([1.0, float("nan")][rank], [2.0, 0.0][rank]) == 1.0
    assert np.isnan(hvd.metric_average(1.0, 0.0))


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
