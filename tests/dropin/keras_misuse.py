"""Checks on two ranks: what is wrong is said, on every rank, before anything hangs."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import pytest
import tensorflow as tf

import hvdtrain.keras as hvd
from hvdtrain.core.errors import HvdtrainError, SpecError, TrainingError
from hvdtrain.keras import callbacks
from hvdtrain.keras.optimizer import engine_of
from hvdtrain.tensorflow import DistributedGradientTape
from tests.dropin import keras_cases as cases
from tests.dropin.keras_cases import shares

sgd = keras.optimizers.SGD


@contextmanager
def raises(kind: type[BaseException], text: str) -> Iterator[None]:
    with pytest.raises(kind) as caught:
        yield
    assert text in str(caught.value), str(caught.value)


def check_weights_that_differ_are_told() -> None:
    parts = shares(cases.batches([4] * 2))
    told = "add hvdtrain.keras.callbacks.BroadcastGlobalVariables"
    for given, kind in (([callbacks.MetricAverage()], TrainingError), ([], TrainingError)):
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


def check_other_arguments_of_the_optimizer_are_told() -> None:
    parts, rank = shares(cases.batches([4] * 2)), hvd.rank()
    broadcast, average = callbacks.BroadcastGlobalVariables(0), callbacks.MetricAverage()
    for optimizer, given, told in (
        (sgd(0.1, momentum=0.5 + rank / 4), [broadcast], "SGD.momentum is 0.5 on rank 0, but 0.75 on rank 1"),
        (sgd(0.1, momentum=0.5 + rank / 4), [], "SGD.momentum is 0.5 on rank 0, but 0.75 on rank 1"),
        (sgd(0.25 * (1 + rank)), [average], "SGD.learning_rate is 0.25 on rank 0, but 0.5 on rank 1"),
        ([sgd(0.1), keras.optimizers.RMSprop(0.1)][rank], [broadcast], "is missing on rank 0"),
    ):
        with raises(TrainingError, told):
            cases.train(hvd.DistributedOptimizer(optimizer), parts, callbacks=given)
    # It may be broadcast after the first step, as in Horovod's own examples.
    with raises(TrainingError, "learning_rate' has other values on rank 1"):
        cases.train(hvd.DistributedOptimizer(sgd(0.25 * (1 + rank))), parts * 2, callbacks=[])


def check_other_callbacks_on_one_rank_are_told() -> None:
    parts, rank = shares(cases.batches([4] * 2)), hvd.rank()
    optimizer = hvd.DistributedOptimizer(sgd(0.1))
    with raises(TrainingError, "root_rank is 0 on rank 0, but 1 on rank 1"):
        cases.train(optimizer, parts, callbacks=[callbacks.BroadcastGlobalVariables(rank)])
    warm = callbacks.LearningRateWarmup(initial_lr=0.25 * (1 + rank), warmup_epochs=1)
    with raises(TrainingError, "LearningRateWarmup: initial_lr is 0.25 on rank 0, but 0.5 on rank 1"):
        cases.train(optimizer, parts, callbacks=[callbacks.BroadcastGlobalVariables(0), warm])


def check_a_model_whose_optimizer_is_plain_is_told_of_at_its_first_step() -> None:
    parts = shares(cases.batches([4] * 2))
    made, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1)), parts)
    cloned = keras.models.clone_model(made)
    cloned.compile(sgd(0.1), loss=cases.loss())
    scaled = keras.models.clone_model(made)
    scaled.compile(keras.optimizers.LossScaleOptimizer(sgd(0.1)), loss=cases.loss())
    made.save(f"copied{hvd.rank()}.keras")
    for given in ([], [callbacks.BroadcastGlobalVariables(0)]):
        for model in (
            copy.deepcopy(made),
            pickle.loads(pickle.dumps(made)),
            keras.models.load_model(f"copied{hvd.rank()}.keras"),
            cloned if given else scaled,
        ):
            with pytest.warns(UserWarning, match=f"rank {hvd.rank()}: SGD is not distributed"):
                _fit(model, parts, given)


def check_nothing_is_said_of_optimizers_whose_gradients_are_reduced() -> None:
    parts = shares(cases.batches([4] * 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases.train(hvd.DistributedOptimizer(sgd(0.1)), parts)
        cases.train(keras.optimizers.LossScaleOptimizer(hvd.DistributedOptimizer(sgd(0.1))), parts)
        each = {"kernel": sgd(0.1), "bias": keras.optimizers.Adam(0.1)}
        several = keras.optimizers.MultiOptimizer(lambda variable: each[variable.name])
        cases.train(hvd.DistributedOptimizer(several), parts)
        _scaled_step({}, True, sgd(0.1))()


def _fit(model: keras.Model, parts: list[cases.Batch], given: list[Any]) -> None:
    model.fit(cases.feed(parts), steps_per_epoch=len(parts), verbose=0, callbacks=given)


def check_wrong_arguments_are_told() -> None:
    for arguments, told in (
        ({"compression": "int7"}, "int8"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
        ({"average": "median"}, "average"),
        ({"max_grad_norm": -1.0}, "max_grad_norm"),
        ({"accumulate": 2}, "accumulate: unknown key"),
        ({"op": 99}, "op: expected Average, Sum, Adasum"),
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


def check_other_things_in_an_arguments_place_are_told() -> None:
    made, optimizer, parts = cases.model(), sgd(0.1), shares(cases.batches([4] * 2))
    made.compile(optimizer, loss=cases.loss())
    for call, told in (
        (lambda: hvd.DistributedOptimizer(made), "expected an optimizer of Keras 3, such as"),
        (lambda: hvd.DistributedOptimizer("adam"), "(found a str)"),
        (
            lambda: hvd.DistributedOptimizer(optimizer, None, "fp16"),
            "'fp16' is where Horovod takes device_dense",
        ),
        (
            lambda: hvd.DistributedOptimizer(optimizer, None, "", "", "fp16", compression="bf16"),
            "compression is given by position and by name",
        ),
        (lambda: hvd.DistributedOptimizer(optimizer, *[""] * 8), "give it by name"),
        (lambda: DistributedGradientTape(made), "expected the tf.GradientTape (found a Sequential)"),
        (
            lambda: DistributedGradientTape(tf.GradientTape(), "fp16"),
            "'fp16' is where Horovod takes device_dense",
        ),
        (lambda: hvd.broadcast_variables(made, 0), "found a Sequential"),
        (lambda: hvd.broadcast_variables(optimizer, 0), "found a SGD"),
        (lambda: hvd.broadcast_variables({"a": made.weights[0]}, 0), "found a dict"),
        (lambda: hvd.broadcast_variables(made.weights[0], 0), "expected a list of variables"),
        (lambda: hvd.broadcast_variables(made.get_weights(), 0), "found a ndarray among them"),
        (lambda: hvd.broadcast_variables(made.layers, 0), "found a Dense among them"),
        (lambda: hvd.broadcast_variables(made.weights, 2), "a rank from 0 to 1 (found 2)"),
        (lambda: hvd.broadcast_variables(made.weights, made), "(found a Sequential)"),
        (lambda: _fit(made, parts, [callbacks.BroadcastGlobalVariables(9)]), "a rank from 0 to 1 (found 9)"),
        (lambda: callbacks.BestModel("val_accuracy"), "metric's is monitor="),
        (_gradient_of_an_input, "found a "),
    ):
        with raises(SpecError, told):
            call()
    # As Horovod takes them.
    by_position = hvd.DistributedOptimizer(
        sgd(0.1), None, "", "/cpu:0", hvd.Compression.fp16, True, 1.0, hvd.Sum
    )
    settings = engine_of(by_position).settings
    assert settings.average == "sum" and settings.compression.type == "fp16"
    hvd.broadcast_variables((v for v in made.weights), 1)
    hvd.broadcast_variables([], 0)


def _gradient_of_an_input() -> None:
    x = tf.ones([2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(x)
    DistributedGradientTape(tape).gradient(value, [x])


def check_variables_that_differ_are_not_broadcast() -> None:
    """A rank would read its own from the middle of others."""
    for shapes, told in (
        ([(2, 3), (4,)], "shape [2, 3] float32 on rank 0, but shape [4] float32 on rank 1"),
        ([(2,), (2,)], "missing on rank 1"),
    ):
        mine = [tf.Variable(tf.zeros(shapes[hvd.rank()]))] if len(shapes[0]) > 1 else []
        mine = mine or [tf.Variable(tf.zeros(shape)) for shape in shapes[: 2 - hvd.rank()]]
        with raises(TrainingError, told):
            hvd.broadcast_variables(mine, 0)


def check_a_tape_beside_a_loss_scale() -> None:
    """By either kind of variable, clipped on the way or not; what nothing is kept of goes through."""
    feedback = {"type": "topk", "ratio": 0.3}
    waits = (
        "error feedback cannot be used with LossScaleOptimizer, because LossScaleOptimizer changes the loss "
        "scale. Use a plain tape"
    )
    for arguments, told in (
        ({"compression": feedback}, waits),
        ({"max_grad_norm": 0.3}, "max_grad_norm: the tape clips gradients that still"),
        ({"compression": feedback | {"use_error_feedback": False}}, None),
        ({"compression": "fp16"}, None),
    ):
        for compiled in (True, False):
            step = _scaled_step(arguments, compiled)
            if told is None:
                step()
                continue
            with raises(SpecError, told):
                step()
    # Without a scale both are what they are for.
    _scaled_step({"compression": feedback, "max_grad_norm": 0.3}, True, sgd(0.1))()


def _scaled_step(
    arguments: dict[str, Any], compiled: bool, optimizer: keras.optimizers.Optimizer | None = None
) -> Callable[[], None]:
    made, measure = cases.model(), cases.loss()
    ((x, y),) = shares(cases.batches([4] * 2))
    optimizer = optimizer or keras.optimizers.LossScaleOptimizer(sgd(0.1))
    # TensorFlow's own variables on one of the ways.
    sources = [v.value for v in made.trainable_variables] if compiled else made.trainable_variables

    def step() -> None:
        with tf.GradientTape() as tape:
            value = optimizer.scale_loss(measure(y, made(x, training=True)))
        found = DistributedGradientTape(tape, **arguments).gradient(value, sources)
        clipped, _ = tf.clip_by_global_norm(found, 1e6)
        optimizer.apply_gradients(zip(clipped, made.trainable_variables, strict=True))

    return tf.function(step) if compiled else step


def check_a_compression_that_no_rank_can_leave_is_told_at_join() -> None:
    """Where Horovod would crash, or fail in one rank."""
    parts = shares(cases.batches([4] * 6))
    for compression, told in (
        ({"type": "topk", "ratio": 0.3}, "join(): compression topk needs every rank"),
        ([{"type": "powersgd", "match": "*kernel"}, {"type": "fp16"}], "join(): compression powersgd needs"),
    ):
        optimizer = hvd.DistributedOptimizer(sgd(0.1), compression=compression)
        made, _ = cases.train(optimizer, parts)
        with raises(SpecError, told):
            hvd.join()
        del made, optimizer
    step, made = _scaled_step({"compression": "int8"}, True, sgd(0.1)), None
    step()
    with raises(SpecError, "join(): compression int8 needs every rank"):
        hvd.join()
    step = _scaled_step({}, True, sgd(0.1))
    step()
    with raises(SpecError, "in the first 2 updates, and this one leaves after 1"):
        hvd.join()
    step()
    del made
    assert hvd.join() in (0, 1)


def check_samples_that_are_not_known_are_told() -> None:
    optimizer = hvd.DistributedOptimizer(sgd(0.1), average="samples")
    with raises(TrainingError, "optimizer.batch_samples"):
        cases.train(optimizer, shares(cases.batches([4] * 2)), callbacks=[])


def check_xla_is_refused() -> None:
    with raises(TrainingError, "jit_compile=False"):
        cases.train(hvd.DistributedOptimizer(sgd(0.1)), shares(cases.batches([4] * 2)), jit_compile=True)


def check_a_damaged_or_foreign_checkpoint_is_told() -> None:
    parts = shares(cases.batches([4] * 2))
    adam = lambda: hvd.DistributedOptimizer(keras.optimizers.Adam(0.05))  # noqa: E731
    given = [callbacks.BroadcastGlobalVariables(0), callbacks.Checkpoint("foreign")]
    cases.train(adam(), parts, callbacks=given)
    wide = keras.Sequential([keras.Input((cases.FEATURES,)), keras.layers.Dense(9)])
    with raises(HvdtrainError, "was saved with other weights"):
        cases.train(adam(), parts, wide, epochs=2, callbacks=given)
