"""`zero_stage=1` against `zero_stage=0`, on any number of ranks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import hvdtrain.keras as hvd
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.keras import callbacks
from tests.dropin import keras_cases as cases
from tests.dropin.keras_cases import shares
from tests.dropin.keras_misuse import raises

kinds = keras.optimizers
# Each with what its wrapper is given; clipping needs the gradients of all variables.
OPTIMIZERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sgd": (lambda: kinds.SGD(0.1, momentum=0.9, global_clipnorm=0.1), {}),
    "adam": (lambda: kinds.Adam(0.05, clipnorm=0.1), {"gradient_accumulation_steps": 2}),
    "adamw": (lambda: kinds.AdamW(kinds.schedules.CosineDecay(0.05, 8)), {"max_grad_norm": 0.1}),
    "adagrad": (lambda: kinds.Adagrad(0.05), {"compression": "bf16"}),
    "rmsprop": (lambda: kinds.RMSprop(0.01, momentum=0.9, centered=True), {"bucket_cap_mb": 0.0001}),
    "nadam": (lambda: kinds.Nadam(0.05), {}),
    "lamb": (lambda: kinds.Lamb(0.05), {"compression": {"type": "powersgd"}}),
    "scaled": (lambda: kinds.LossScaleOptimizer(kinds.Adam(0.05), initial_scale=16.0), {}),
}


def deep(layers: int = 3) -> keras.Model:
    keras.utils.set_random_seed(1)
    inside = [keras.layers.Dense(16, activation="tanh", dtype="float64") for _ in range(layers)]
    last = keras.layers.Dense(cases.CLASSES, dtype="float64")
    return keras.Sequential([keras.Input((cases.FEATURES,), dtype="float64"), *inside, last])


def loop(optimizer: Any, model: keras.Model, updates: int = 3, infinite: bool = False) -> None:
    """A loop of the user's own, without `tf.function`."""
    for update, (x, y) in enumerate(shares(cases.batches([4] * updates * hvd.size()))):
        with tf.GradientTape() as tape:
            value = optimizer.scale_loss(cases.loss()(y, model(x, training=True)))
        gradients = tape.gradient(value, model.trainable_variables)
        if infinite and update == 1 and hvd.rank() == 0:
            gradients[0] *= np.inf
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def same(ours: keras.Model, theirs: keras.Model) -> None:
    """To the bit on two ranks; three may add in another order."""
    cases.assert_same(ours, theirs, 0.0 if hvd.size() < 3 else 1e-12)


def check_updates_are_those_of_zero_stage_0() -> None:
    for name, (make, arguments) in OPTIMIZERS.items():
        models = []
        for stage in (0, 1):
            model = deep()
            loop(
                hvd.DistributedOptimizer(make(), zero_stage=stage, **arguments),
                model,
                infinite=name == "scaled",
            )
            models.append(model)
        same(*models)


def check_fit_is_that_of_zero_stage_0() -> None:
    arguments = {"gradient_accumulation_steps": 2, "average": "samples"}
    models = []
    for stage in (0, 1):
        optimizer = hvd.DistributedOptimizer(kinds.Adam(0.05), zero_stage=stage, **arguments)
        models.append(cases.train(optimizer, shares(cases.batches([4] * 4 * hvd.size())))[0])
    same(*models)


def check_each_rank_has_its_part_of_the_state() -> None:
    for name, (make, arguments) in OPTIMIZERS.items():
        plain, model = make(), deep(6)
        plain.build(model.trainable_variables)
        optimizer = hvd.DistributedOptimizer(make(), zero_stage=1, **arguments)
        optimizer.build(model.trainable_variables)
        mine = sum(elements(v) for v in optimizer.variables if isinstance(v, keras.Variable))
        # Of the largest weight, all that is kept of it.
        largest = 16 * 16 * sum(v.shape == (16, 16) for v in plain.variables) / 5
        total = sum(map(elements, plain.variables))
        assert mine <= total / hvd.size() + largest + 4, name
        assert [v.shape for v in optimizer.variables] == [v.shape for v in plain.variables], name
        assert names(optimizer) == names(plain), name


def names(optimizer: Any) -> list[str]:
    # Keras numbers what has no name.
    return [variable.name.rstrip("0123456789") for variable in optimizer.variables]


def elements(variable: Any) -> int:
    return math.prod(variable.shape)


def check_a_checkpoint_goes_to_another_stage_and_back() -> None:
    parts = shares(cases.batches([4] * 4 * hvd.size()))
    stages = ((0, 0, 0), (1, 0, 1))
    models = []
    for each in stages:
        for epochs, stage in enumerate(each, 1):
            optimizer = hvd.DistributedOptimizer(make_scaled(), zero_stage=stage)
            given = [callbacks.BroadcastGlobalVariables(0), callbacks.Checkpoint(f"state{each}")]
            made, _ = cases.train(optimizer, parts, epochs=epochs, callbacks=given)
        models.append(made)
    same(*models)
    # A second fit of the same model goes on with what each rank has.
    for made in models:
        given = [callbacks.BroadcastGlobalVariables(0), callbacks.LearningRateWarmup(warmup_epochs=2)]
        made.fit(cases.feed(parts), steps_per_epoch=len(parts), verbose=0, callbacks=given)
    same(*models)


def make_scaled() -> Any:
    return kinds.LossScaleOptimizer(kinds.SGD(0.1, momentum=0.9))


def check_a_saved_model_has_all_of_the_state() -> None:
    saved = []
    for stage in (0, 1):
        model = deep()
        optimizer = hvd.DistributedOptimizer(kinds.Adam(0.05), zero_stage=stage)
        model.compile(optimizer, loss=cases.loss())
        loop(optimizer, model)
        path = Path(f"saved{stage}.keras")
        if stage and hvd.size() > 1:
            with raises(TrainingError, "consolidate_optimizer_state(model.optimizer) on every rank"):
                model.save(f"refused{hvd.rank()}.keras")
        hvd.consolidate_optimizer_state(model.optimizer)
        if hvd.rank() == 0:
            model.save(path)
        hvd.allgather_object(None)
        saved.append(keras.models.load_model(path))
    same(*saved)
    for one, two in zip(*(each.optimizer.variables for each in saved), strict=True):
        np.testing.assert_allclose(one.numpy(), two.numpy(), rtol=1e-9, atol=1e-15)
    models = [hvd.load_model("saved1.keras", zero_stage=stage) for stage in (0, 1)]
    # One rank loads, and broadcasts; the others build.
    third = models[1] if hvd.rank() == 0 else deep()
    if hvd.rank() != 0:
        third.compile(hvd.DistributedOptimizer(kinds.Adam(0.05), zero_stage=1), loss=models[1].loss)
    parts = shares(cases.batches([4] * 4 * hvd.size(), seed=1))
    for model in (models[0], third):
        given = [callbacks.BroadcastGlobalVariables(0)]
        model.fit(cases.feed(parts), steps_per_epoch=len(parts), verbose=0, callbacks=given)
    same(models[0], third)


def check_the_best_model_is_saved_with_all_of_the_state() -> None:
    given = [callbacks.MetricAverage(), callbacks.BestModel("best.keras", monitor="loss")]
    optimizer = hvd.DistributedOptimizer(kinds.Adam(0.01), zero_stage=1)
    made, _ = cases.train(optimizer, shares(cases.batches([4] * 4 * hvd.size())), callbacks=given)
    hvd.consolidate_optimizer_state(made.optimizer, root_rank=hvd.size() - 1)
    if hvd.rank() == hvd.size() - 1:
        found = keras.models.load_model("best.keras").optimizer.variables
        for one, two in zip(found, made.optimizer.variables, strict=True):
            assert (one.numpy() == two.numpy()).all()
    assert hvd.rank() == hvd.size() - 1 or hvd.size() == 1 or not np.all(known(made.optimizer))


def known(optimizer: Any) -> list[bool]:
    return [getattr(variable, "known", True) for variable in optimizer.variables]


def check_what_is_refused() -> None:
    def wrap(optimizer: Any, **arguments: Any) -> Any:
        return hvd.DistributedOptimizer(optimizer, **{"zero_stage": 1} | arguments)

    for stage in (2, 3):
        with raises(SpecError, f"hvdtrain run --set zero_stage={stage}"):
            wrap(kinds.SGD(0.1), zero_stage=stage)
    with raises(SpecError, "use_ema"):
        wrap(kinds.SGD(0.1, use_ema=True))
    with raises(SpecError, "give gradient_accumulation_steps to DistributedOptimizer"):
        wrap(kinds.SGD(0.1, gradient_accumulation_steps=2))
    built = kinds.SGD(0.1)
    built.build([])
    with raises(SpecError, "load_model(path, zero_stage=1)"):
        wrap(built)
    model = cases.model()
    with raises(SpecError, "Adafactor keeps"):
        wrap(kinds.Adafactor(0.1)).build(deep().trainable_variables)
    with raises(SpecError, "zero_stage: every rank updates its local layers itself"):
        hvd.PartialDistributedOptimizer(kinds.SGD(0.1), local_layers=model.layers[:1], zero_stage=1)
    with raises(SpecError, "use hvdtrain.keras.DistributedOptimizer"):
        hvd.DistributedGradientTape(tf.GradientTape(), zero_stage=1)
    model.compile(wrap(kinds.SGD(0.1)))
    with raises(SpecError, "KerasState: keeps the whole optimizer state"):
        hvd.elastic.KerasState(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.summary(print_fn=lambda _: None)
