"""What Horovod has beside its optimizer, in Keras 3, and what is named of Keras 2. Run on 2 ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import hvdtrain.keras as hvd
import hvdtrain.tensorflow
import hvdtrain.tensorflow.keras
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.keras import callbacks
from hvdtrain.tensorflow.keras import callbacks as same_callbacks
from tests.dropin import keras_cases as cases

RATE, FEATURES, LOCAL = 0.1, 3, 2


def check_every_path_has_the_same_names() -> None:
    assert hvdtrain.tensorflow.keras.DistributedOptimizer is hvd.DistributedOptimizer
    assert hvdtrain.tensorflow.DistributedOptimizer is hvd.DistributedOptimizer
    assert hvd.DistributedGradientTape is hvdtrain.tensorflow.DistributedGradientTape
    assert same_callbacks.MetricAverageCallback is callbacks.MetricAverageCallback
    assert hvdtrain.tensorflow.keras.callbacks.MetricAverage is hvd.callbacks.MetricAverage
    assert hvdtrain.tensorflow.keras.elastic.KerasState is hvd.elastic.KerasState
    for module in (hvd, hvdtrain.tensorflow, hvdtrain.tensorflow.keras):
        gone = rf"^{module.__name__}\.broadcast_.*session of TensorFlow 1.*use broadcast_variables"
        with pytest.raises(AttributeError, match=gone):
            module.broadcast_global_variables  # noqa: B018
        with pytest.raises(AttributeError, match=rf"^neither {module.__name__} nor horovod.* has a 'foo'"):
            module.foo  # noqa: B018
        listed = {*dir(module)}
        assert {"rank", "allreduce", "DistributedOptimizer", "elastic"} <= listed
        assert not listed & {
            "broadcast_global_variables",
            "Any",
            "LazyNames",
            "dropin",
            "os",
            "tf",
            "__name__",
        }
        assert not any(name.startswith("_") for name in listed)


def check_what_is_of_keras_2_is_named() -> None:
    optimizer = keras.optimizers.SGD(RATE)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    for text, act in {
        "write optimizer.variables": optimizer.variables,
        "write optimizer.learning_rate": lambda: setattr(optimizer, "lr", 1.0),
        "write learning_rate=": lambda: keras.optimizers.Adam(lr=1.0),
        "leave it out": lambda: model.compile(optimizer, experimental_run_tf_function=False),
        "keras.utils.PyDataset": lambda: model.fit(np.ones((2, 2)), workers=4),
        "write fit": lambda: model.fit_generator(iter([])),
    }.items():
        with pytest.raises(SpecError, match=rf"is from Keras 2\. .*(?i:{text}).*python -m hvdtrain\.horovod"):
            act()
    for text, act in {
        "write optimizer.learning_rate": lambda: optimizer.lr,
        "write keras.ops.convert_to_numpy": lambda: keras.backend.get_value,
        "write x.assign": lambda: keras.backend.set_value,
        "tf.keras.preprocessing": lambda: keras.preprocessing.image.ImageDataGenerator,
    }.items():
        with pytest.raises(AttributeError, match=f"(?i:{text})"):
            act()
    assert not hasattr(optimizer, "lr")
    assert float(optimizer.learning_rate) == pytest.approx(RATE)


def norms(kind: Any, axis: int = -1) -> keras.Model:
    keras.utils.set_random_seed(4)
    layers = [keras.layers.Dense(4), kind(axis=axis, momentum=0.7), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((FEATURES,), dtype="float64"), *layers])
    for layer in layers:
        layer.dtype_policy = keras.DTypePolicy("float64")
    return keras.models.clone_model(model)


def check_sync_batch_normalization_is_that_of_one_process() -> None:
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        for rows in ((4, 4), (5, 2), (6, 0)):
            ours, alone = (
                norms(hvdtrain.tensorflow.SyncBatchNormalization),
                norms(keras.layers.BatchNormalization),
            )
            for a, b in zip(ours.weights, alone.weights, strict=True):
                b.assign(a)
            hvdtrain.tensorflow.broadcast_variables([*ours.weights, *alone.weights])
            optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(np.float64(RATE)), average="sum")
            other = keras.optimizers.SGD(np.float64(RATE))
            random = np.random.default_rng(1)

            def step(
                model: keras.Model, optimizer: Any, x: np.ndarray, y: np.ndarray, total: int
            ) -> Callable[[], None]:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum((model(x, training=True) - y) ** 2) / total
                found = tape.gradient(loss, model.trainable_variables)
                optimizer.apply_gradients(zip(found, model.trainable_variables, strict=True))

            compiled = tf.function(step, reduce_retracing=True)
            for update in range(3):
                x = 1e3 + random.normal(size=(sum(rows), FEATURES))
                y = random.normal(size=(sum(rows), 2))
                share = slice(0, rows[0]) if hvd.rank() == 0 else slice(rows[0], None)
                run = compiled if update else step
                run(ours, optimizer, tf.constant(x[share]), tf.constant(y[share]), len(x))
                if not update:
                    compiled = tf.function(step)
                step(alone, other, x, y, len(x))
            for a, b in zip(ours.weights, alone.weights, strict=True):
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-7, atol=1e-9, err_msg=a.path)
    finally:
        keras.config.set_floatx(before)
    with pytest.raises(SpecError, match="fused"):
        hvdtrain.tensorflow.SyncBatchNormalization(fused=True)


def check_sync_batch_normalization_in_fit_with_a_mask_and_in_a_file() -> None:
    x = np.random.default_rng(hvd.rank()).normal(size=(6 - hvd.rank(), 4, 2)).astype("float32")
    # Masked places must not count, even where nothing finite is in them.
    mask = np.arange(4)[None] < np.arange(1, len(x) + 1)[:, None]
    layer = hvdtrain.tensorflow.SyncBatchNormalization(momentum=0.0)
    layer(np.where(mask[..., None], x, np.nan).astype("float32"), training=True, mask=mask)
    every = np.concatenate(hvd.allgather_object(x[mask]))
    np.testing.assert_allclose(layer.moving_mean.numpy(), every.mean(0), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance.numpy(), every.var(0), rtol=1e-4)
    model = keras.Sequential(
        [keras.Input((2,)), hvdtrain.tensorflow.SyncBatchNormalization(), keras.layers.Dense(1)]
    )
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.01)), loss="mse")
    given = [callbacks.BroadcastGlobalVariables(0)]
    model.fit(x[:4, 0], x[:4, 0, :1], batch_size=2, verbose=0, callbacks=given)
    first, second = hvd.allgather_object([w.tolist() for w in model.get_weights()])
    assert first == second
    model.save(f"norm{hvd.rank()}.keras")
    again = keras.models.load_model(f"norm{hvd.rank()}.keras")
    assert isinstance(again.layers[0], hvdtrain.tensorflow.SyncBatchNormalization)


def partial(rank: int) -> tuple[keras.Model, keras.layers.Layer]:
    # Other shapes on each rank, as shards of an embedding have.
    local = keras.layers.Dense(LOCAL + rank, use_bias=False, kernel_initializer="ones")
    shared = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    x = keras.Input((FEATURES,))
    total = keras.layers.Lambda(lambda y: keras.ops.sum(y, -1, keepdims=True), output_shape=(1,))(local(x))
    return keras.Model(x, shared(x) + total), local


def gradients(kernel: np.ndarray, local: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean squared error of a rank's rows."""
    x, y = data(rank)
    slope = 2 * (x @ kernel + (x @ local).sum(1, keepdims=True) - y) / len(x)
    return x.T @ slope, np.repeat(x.T @ slope, local.shape[1], 1)


def data(rank: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(7 + rank)
    return random.normal(size=(4, FEATURES)).astype("float32"), random.normal(size=(4, 1)).astype("float32")


def reference(updates: int, factor: float) -> tuple[np.ndarray, np.ndarray]:
    kernel, locals_ = np.ones((FEATURES, 1)), [np.ones((FEATURES, LOCAL + r)) for r in range(2)]
    for _ in range(updates):
        found = [gradients(kernel, locals_[r], r) for r in range(2)]
        kernel = kernel - RATE * (found[0][0] + found[1][0]) / 2
        locals_ = [w - RATE * factor * g for w, (_, g) in zip(locals_, found, strict=True)]
    return kernel, locals_[hvd.rank()]


def check_layers_that_stay_local() -> None:
    x, y = data(hvd.rank())
    for scale, factor in ((True, 0.5), (False, 1.0)):
        model, local = partial(hvd.rank())
        optimizer = hvd.PartialDistributedOptimizer(
            keras.optimizers.SGD(RATE, momentum=0.0), local_layers=local, scale_local_gradients=scale
        )
        model.compile(optimizer, loss="mse")
        given = [callbacks.BroadcastGlobalVariables(0)]
        model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=given)
        kernel, own = reference(3, factor)
        np.testing.assert_allclose(shared(model), kernel, rtol=1e-4)
        np.testing.assert_allclose(local.kernel.numpy(), own, rtol=1e-4)
        taped, local = partial(hvd.rank())
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((taped(x) - y) ** 2)
            tape = hvdtrain.tensorflow.PartialDistributedGradientTape(
                tape, local_layers=[local], scale_local_gradients=scale
            )
            for variable, gradient in zip(
                taped.trainable_variables, tape.gradient(loss, taped.trainable_variables), strict=True
            ):
                variable.assign_sub(RATE * gradient)
        np.testing.assert_allclose(shared(taped), kernel, rtol=1e-4)
        np.testing.assert_allclose(local.kernel.numpy(), own, rtol=1e-4)
    for options, text in (
        ({"local_layers": "dense"}, "expected layers of Keras"),
        ({"local_layers": local, "max_grad_norm": 1.0}, "max_grad_norm"),
    ):
        with pytest.raises(SpecError, match=text):
            hvd.PartialDistributedOptimizer(keras.optimizers.SGD(RATE), **options)


def shared(model: keras.Model) -> np.ndarray:
    return next(w.numpy() for w in model.weights if w.shape == (FEATURES, 1))


def check_elastic_state_in_a_job_whose_ranks_stay() -> None:
    parts = cases.shares(cases.batches([4] * 4))
    model = cases.model()
    model.compile(hvd.DistributedOptimizer(keras.optimizers.Adam(RATE)), loss=cases.loss())
    state = hvd.elastic.KerasState(model, epoch=hvd.rank())

    @hvd.elastic.run
    def train(state: hvd.elastic.KerasState) -> int:
        given = [callbacks.BroadcastGlobalVariables(0), hvd.elastic.UpdateEpochStateCallback(state)]
        given.append(hvd.elastic.CommitStateCallback(state, 10))
        model.fit(cases.feed(parts), steps_per_epoch=2, verbose=0, callbacks=given)
        kept = model.get_weights()
        model.set_weights([w + 1 for w in kept])
        state.restore()
        for a, b in zip(kept, model.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        return int(model.optimizer.iterations)

    assert train(state) == 2
    assert state.epoch == 1
    os.environ["HOROVOD_ELASTIC"] = "1"
    try:
        with pytest.raises(TrainingError, match="ranks come and go"):
            hvd.elastic.KerasState(model)
    finally:
        del os.environ["HOROVOD_ELASTIC"]
