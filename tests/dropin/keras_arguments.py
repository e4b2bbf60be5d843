"""Checks on two ranks: every argument of the wrappers against one process on the concatenated batch."""

from __future__ import annotations

import contextlib
import gc
import io
import weakref

import keras
import numpy as np
import tensorflow as tf

import hvdtrain.keras as hvd
from hvdtrain.keras.optimizer import engine_of
from hvdtrain.tensorflow import DistributedGradientTape
from hvdtrain.tensorflow.dropin import tape
from tests.dropin import keras_cases as cases
from tests.dropin.keras_cases import shares, windows

sgd = keras.optimizers.SGD


def check_the_mean_over_ranks() -> None:
    parts = cases.batches([4] * 8)
    ours, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1, momentum=0.9)), shares(parts))
    cases.assert_same(ours, cases.train_alone(sgd(0.1, momentum=0.9), windows(parts, 2)), 1e-12)


def check_float32() -> None:
    parts = cases.batches([4] * 8, dtype="float32")
    ours, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1)), shares(parts), dtype="float32")
    cases.assert_same(ours, cases.train_alone(sgd(0.1), windows(parts, 2), dtype="float32"), 1e-6)


def check_accumulation() -> None:
    parts = cases.batches([4] * 12)
    optimizer = hvd.DistributedOptimizer(sgd(0.1, momentum=0.9), gradient_accumulation_steps=3)
    ours, _ = cases.train(optimizer, shares(parts))
    cases.assert_same(ours, cases.train_alone(sgd(0.1, momentum=0.9), windows(parts, 6)), 1e-12)
    assert int(optimizer.iterations.numpy()) == 2


def check_horovods_accumulation_adds_up() -> None:
    parts = cases.batches([4] * 8)
    optimizer = hvd.DistributedOptimizer(sgd(0.1), backward_passes_per_step=2)
    ours, _ = cases.train(optimizer, shares(parts))
    cases.assert_same(ours, cases.train_alone(sgd(0.1), windows(parts, 4), factor=2.0), 1e-12)


def check_a_window_that_an_epoch_leaves_incomplete_is_completed_by_the_next() -> None:
    """Six micro-batches an epoch, four a window: whatever the divisor, it is of the four there are."""
    sizes = [4, 3, 2, 5, 4, 1, 3, 3, 2, 4, 5, 1]
    parts = cases.batches(sizes)
    # Three updates of four micro-batches on each of two ranks, over two epochs.
    whole = windows([*parts, *parts], 8)
    for arguments in ({"average": "samples"}, {"average": "mean"}, {"average": "ranks"}):
        even = arguments["average"] != "samples"
        data = cases.batches([4] * 12) if even else parts
        updates = windows([*data, *data], 8) if even else whole
        optimizer = hvd.DistributedOptimizer(sgd(0.1), gradient_accumulation_steps=4, **arguments)
        ours, _ = cases.train(optimizer, shares(data), epochs=2)
        factor = 4.0 if arguments["average"] == "ranks" else 1.0
        cases.assert_same(ours, cases.train_alone(sgd(0.1), updates, factor=factor), 1e-12)
        assert int(optimizer.iterations.numpy()) == 3


def check_what_is_left_of_a_window_is_told_when_fit_ends() -> None:
    parts = cases.batches([4] * 12)
    optimizer = hvd.DistributedOptimizer(sgd(0.1), gradient_accumulation_steps=4)
    made = cases.model()
    for told in ("2 of 4 micro-batches", ""):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            cases.train(optimizer, shares(parts), made, epochs=1)
        # On a GPU, where Keras takes XLA by itself, it is told as well that this is off.
        lines = [line for line in out.getvalue().splitlines() if "jit_compile" not in line]
        assert bool(lines) == bool(told and hvd.rank() == 0)
        assert told in out.getvalue() or hvd.rank()
    cases.assert_same(made, cases.train_alone(sgd(0.1), windows([*parts, *parts], 8)), 1e-12)


def check_the_sum() -> None:
    parts = cases.batches([4] * 4)
    for argument in ({"average": "sum"}, {"op": hvd.Sum}):
        optimizer = hvd.DistributedOptimizer(sgd(0.01), **argument)
        ours, _ = cases.train(optimizer, shares(parts), reduction="sum")
        cases.assert_same(ours, cases.train_alone(sgd(0.01), windows(parts, 2), reduction="sum"), 1e-12)


def check_samples_of_ragged_batches() -> None:
    parts = cases.batches([4, 4, 4, 3, 1, 5])
    ours, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1), average="samples"), shares(parts))
    cases.assert_same(ours, cases.train_alone(sgd(0.1), windows(parts, 2)), 1e-12)


def check_samples_with_accumulation_and_clipping() -> None:
    parts = cases.batches([4, 4, 4, 3, 1, 5, 2, 7])
    optimizer = hvd.DistributedOptimizer(
        sgd(0.1), average="samples", gradient_accumulation_steps=2, max_grad_norm=0.2
    )
    ours, _ = cases.train(optimizer, shares(parts))
    alone = cases.train_alone(sgd(0.1), windows(parts, 4), max_norm=0.2)
    cases.assert_same(ours, alone, 1e-12)


def check_clipping_and_small_buckets() -> None:
    parts = cases.batches([4] * 6)
    optimizer = hvd.DistributedOptimizer(sgd(0.5), max_grad_norm=0.05, bucket_cap_mb=0.0001)
    ours, _ = cases.train(optimizer, shares(parts))
    assert len(engine_of(optimizer).gradients.buckets) > 1
    cases.assert_same(ours, cases.train_alone(sgd(0.5), windows(parts, 2), max_norm=0.05), 1e-12)


def check_compression_is_close_and_sends_less() -> None:
    parts = cases.batches([4] * 8)
    sent = {}
    alone = cases.train_alone(sgd(0.1), windows(parts, 2))
    for compression in ("none", hvd.Compression.fp16, {"type": "topk", "ratio": 1.0}):
        optimizer = hvd.DistributedOptimizer(sgd(0.1), compression=compression)
        ours, _ = cases.train(optimizer, shares(parts))
        sent[str(compression)] = engine_of(optimizer).gradients.driver.wire_bytes
        cases.assert_same(ours, alone, 1e-3 if compression is hvd.Compression.fp16 else 1e-12)
    count = sum(w.size for w in alone.get_weights())
    plain, half, _ = sent.values()
    assert plain == 4 * count * 8
    # Two bytes an element; the first update finds its scale by four bytes more.
    assert half == 4 * count * 2 + 4


def check_a_policy_that_starts_later() -> None:
    parts = cases.batches([4] * 8)
    policy = {"type": "powersgd", "start_powerSGD_iter": 2, "min_compression_rate": 1.0}
    before, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1), compression=policy), shares(parts[:4]))
    cases.assert_same(before, cases.train_alone(sgd(0.1), windows(parts[:4], 2)), 1e-12)
    after, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1), compression=policy), shares(parts))
    alone = cases.train_alone(sgd(0.1), windows(parts, 2))
    difference = np.abs(after.get_weights()[0] - alone.get_weights()[0]).max()
    assert 1e-9 < difference < 0.1


def check_adasum_of_equal_gradients_is_that_gradient() -> None:
    parts = cases.batches([4] * 2)
    same = [parts[0], parts[1]]
    ours, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1), op=hvd.Adasum), same)
    cases.assert_same(ours, cases.train_alone(sgd(0.1), same), 1e-12)


def check_steps_per_execution_and_eager_steps() -> None:
    parts = cases.batches([4] * 8)
    alone = cases.train_alone(sgd(0.1), windows(parts, 4))
    for compiling in ({"steps_per_execution": 2}, {"run_eagerly": True}):
        optimizer = hvd.DistributedOptimizer(sgd(0.1), gradient_accumulation_steps=2)
        made = cases.model()
        made.compile(optimizer, loss=cases.loss(), **compiling)
        x, y = cases.joined(shares(parts))
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
        made.fit(data, epochs=1, verbose=0, callbacks=[hvd.callbacks.BroadcastGlobalVariables(0)])
        cases.assert_same(made, alone, 1e-12)


class Lookup(keras.Model):
    """A subclassed model, built by its first step, with sparse gradients and a layer that it never uses."""

    def __init__(self) -> None:
        super().__init__(dtype="float64")
        random = keras.initializers.RandomNormal(seed=hvd.rank())
        self.table = keras.layers.Embedding(11, 4, embeddings_initializer=random, dtype="float64")
        self.out = keras.layers.Dense(cases.CLASSES, kernel_initializer=random, dtype="float64")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return self.out(keras.ops.mean(self.table(x), axis=1))


def check_a_subclassed_model_with_sparse_gradients() -> None:
    random = np.random.default_rng(3)
    x, y = random.integers(0, 11, (16, 5)), random.integers(0, cases.CLASSES, 16)
    ours = Lookup()
    ours.compile(hvd.DistributedOptimizer(keras.optimizers.Adam(0.1)), loss=cases.loss())
    mine = slice(hvd.rank() * 4, hvd.rank() * 4 + 4)
    steps = [(x[8 * i :][mine], y[8 * i :][mine]) for i in range(2)]
    ours.fit(
        cases.feed(steps),
        steps_per_epoch=2,
        verbose=0,
        callbacks=[hvd.callbacks.BroadcastGlobalVariables(0)],
    )
    # Rank 0's first weights, which every rank has started from.
    alone = Lookup()
    alone(x[:1])
    hvd.broadcast_variables(alone.weights, 0)
    cases.train_alone(keras.optimizers.Adam(0.1), [(x[:8], y[:8]), (x[8:], y[8:])], made=alone)
    cases.assert_same(ours, alone, 1e-12)


def check_a_custom_loop_with_the_optimizer() -> None:
    parts = cases.batches([4, 4, 4, 3, 2, 4, 1, 5])
    made = cases.model()
    optimizer = hvd.DistributedOptimizer(
        keras.optimizers.Adam(0.05), average="samples", gradient_accumulation_steps=2
    )
    measure = cases.loss()

    @tf.function(reduce_retracing=True)
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = measure(y, made(x, training=True))
        optimizer.batch_samples = tf.shape(x)[0]
        gradients = tape.gradient(value, made.trainable_variables)
        optimizer.apply_gradients(zip(gradients, made.trainable_variables, strict=True))

    for x, y in shares(parts):
        step(tf.constant(x), tf.constant(y))
    cases.assert_same(made, cases.train_alone(keras.optimizers.Adam(0.05), windows(parts, 4)), 1e-12)


def check_a_custom_loop_with_the_tape() -> None:
    parts = cases.batches([4, 4, 4, 3, 2, 4])
    made, optimizer, measure = cases.model(), sgd(0.1), cases.loss()

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = measure(y, made(x, training=True))
        tape = DistributedGradientTape(
            tape, average="samples", batch_samples=tf.shape(x)[0], max_grad_norm=0.3
        )
        gradients = tape.gradient(value, made.trainable_variables)
        optimizer.apply_gradients(zip(gradients, made.trainable_variables, strict=True))

    for x, y in shares(parts):
        step(tf.constant(x), tf.constant(y))
    cases.assert_same(made, cases.train_alone(sgd(0.1), windows(parts, 2), max_norm=0.3), 1e-12)


def check_a_constant_gradient_is_reduced_in_every_step() -> None:
    """TensorFlow would compute it, and the collective behind it, once, when a rank traces."""
    offset = tf.Variable([1.0, 2.0])

    @tf.function
    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = (hvd.rank() + 1.0) * tf.reduce_sum(offset) + 0.0 * tf.reduce_sum(x)
        return DistributedGradientTape(tape).gradient(value, [offset])[0]

    # The ranks trace at different steps.
    for rows in ((2, 2), (2, 3), (4, 2), (2, 2)):
        np.testing.assert_array_equal(step(tf.zeros(rows[hvd.rank()])), [1.5, 1.5])


def check_ranks_with_fewer_batches_join() -> None:
    sizes = [4, 3, 2, 5, 4]
    parts = cases.batches(sizes)
    for compression, tolerance in (("none", 1e-12), ("fp16", 2e-3), ("bf16", 2e-2)):
        made, measure = cases.model(), cases.loss()
        optimizer = hvd.DistributedOptimizer(sgd(0.1), average="samples", compression=compression)

        def step(x: tf.Tensor, y: tf.Tensor, made=made, optimizer=optimizer, measure=measure) -> None:  # type: ignore[no-untyped-def]
            with tf.GradientTape() as tape:
                value = measure(y, made(x, training=True))
            optimizer.batch_samples = tf.shape(x)[0]
            gradients = tape.gradient(value, made.trainable_variables)
            optimizer.apply_gradients(zip(gradients, made.trainable_variables, strict=True))

        run = tf.function(step, reduce_retracing=True)
        # Three on rank 0, two on rank 1.
        for x, y in shares(parts):
            run(tf.constant(x), tf.constant(y))
        assert hvd.join() == 0
        hvd.broadcast_variables([*made.weights, *optimizer.variables], 0)
        cases.assert_same(made, cases.train_alone(sgd(0.1), windows(parts, 2)), tolerance)
        # The wire's scale, which all ranks must have alike, as well.
        run(*map(tf.constant, shares(cases.batches([4, 4], seed=5))[0]))
        every = hvd.allgather(np.concatenate([w.reshape(-1) for w in made.get_weights()])[None])
        np.testing.assert_array_equal(every[0], every[1])
        states = [s["maximum"] for s in engine_of(optimizer).gradients.driver.read() if "maximum" in s]
        assert [*hvd.allgather(np.array(states))] == states * 2


def _by_tape(parts: list[cases.Batch], compiled: bool) -> keras.Model:
    made, optimizer, measure = cases.model(), sgd(0.1), cases.loss()

    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = measure(y, made(x, training=True))
        gradients = DistributedGradientTape(tape).gradient(value, made.trainable_variables)
        optimizer.apply_gradients(zip(gradients, made.trainable_variables, strict=True))

    run = tf.function(step) if compiled else step
    for x, y in shares(parts):
        run(tf.constant(x), tf.constant(y))
    return made


def check_a_rank_may_have_made_other_layers_before() -> None:
    """Keras numbers them, so that names differ, and how long they are."""
    for _ in range(1000 * hvd.rank()):
        keras.layers.Dense(1)
    parts = cases.batches([4] * 6)
    for compiled in (True, False):
        expected = cases.train_alone(sgd(0.1), windows(parts, 2))
        cases.assert_same(_by_tape(parts, compiled), expected, 1e-12)


def check_no_model_is_kept_for_ever() -> None:
    """Not by a tape, compiled or not, nor by `fit` and its callbacks."""
    parts = cases.batches([4] * 4)

    def by_fit() -> keras.Model:
        given = [hvd.callbacks.BroadcastGlobalVariables(0), hvd.callbacks.MetricAverage()]
        optimizer = hvd.DistributedOptimizer(sgd(0.1), gradient_accumulation_steps=2)
        return cases.train(optimizer, shares(parts), callbacks=given)[0]

    gc.collect()
    before = len(tape._known)
    for train in (lambda: _by_tape(parts, True), lambda: _by_tape(parts, False), by_fit):
        made = train()
        kept = [weakref.ref(each) for each in (made, *made.weights)]
        del made
        gc.collect()
        assert not [each() for each in kept if each() is not None]
    assert len(tape._known) == before


def check_keras_own_accumulation_alone() -> None:
    parts = cases.batches([4] * 8)
    ours, _ = cases.train(hvd.DistributedOptimizer(sgd(0.1, gradient_accumulation_steps=2)), shares(parts))
    cases.assert_same(ours, cases.train_alone(sgd(0.1), windows(parts, 4)), 1e-12)
