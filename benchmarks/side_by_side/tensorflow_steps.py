"""The TensorFlow competitors: each function joins its ranks and returns one rank's step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

import hvdtrain.tensorflow as dropin
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.keras.optimizer import DistributedOptimizer
from hvdtrain.tensorflow import world
from hvdtrain.tensorflow.model import Model, tensors
from hvdtrain.tensorflow.trainer import build_trainer
from side_by_side.competitors import RANKS
from side_by_side.work import Work, make_work

# Takes the number of the update from 0; returns this rank's share of the mean loss, or the mean loss itself.
Step = Callable[[int], float]
Batch = dict[str, tf.Tensor]


def hvdtrain(spec: JobSpec) -> tuple[int, Step]:
    """This project's `Trainer.update`."""
    ranks = world.init(spec)
    work = make_work(spec, ranks.rank)
    trainer = build_trainer(spec, work.plan, work.weights)
    trainer.model.write(work.initial())

    def step(number: int) -> float:
        window, divisor = work.window(number)
        result = trainer.update(
            window, divisor, work.window(number + 1)[0].weight, work.plan.learning_rate, number + 1, 1.0
        )
        return result.loss_sum / divisor / RANKS

    return ranks.rank, step


def stock(spec: JobSpec) -> tuple[int, Step]:
    """Horovod's `DistributedGradientTape` in a compiled step, with Keras' AdamW."""
    hvd.init()
    _one_thread()
    work, model = _build(spec, hvd.rank())
    optimizer = _adamw(work, model)
    hvd.broadcast_variables(_variables(model, work.weights), root_rank=0)

    def reduced(tape: tf.GradientTape) -> tf.GradientTape:
        return hvd.DistributedGradientTape(tape, op=hvd.Sum, sparse_as_dense=True)

    return hvd.rank(), _step(work, tf.function(_train(model, optimizer, reduced)))


def wrapper(spec: JobSpec) -> tuple[int, Step]:
    """This project's `DistributedGradientTape` in the same step."""
    dropin.init()
    tf.config.threading.set_inter_op_parallelism_threads(1)
    work, model = _build(spec, hvd.rank())
    optimizer = _adamw(work, model)
    dropin.broadcast_variables(_variables(model, work.weights), root_rank=0)

    def reduced(tape: tf.GradientTape) -> tf.GradientTape:
        return dropin.DistributedGradientTape(tape, average="sum")

    return hvd.rank(), _step(work, tf.function(_train(model, optimizer, reduced)))


def keras_wrapper(spec: JobSpec) -> tuple[int, Step]:
    """This project's `DistributedOptimizer` of Keras in the same step."""
    dropin.init()
    tf.config.threading.set_inter_op_parallelism_threads(1)
    work, model = _build(spec, hvd.rank())
    optimizer = DistributedOptimizer(_adamw(work, model), average="sum")
    dropin.broadcast_variables(_variables(model, work.weights), root_rank=0)
    return hvd.rank(), _step(work, tf.function(_train(model, optimizer)))


def mirrored(spec: JobSpec) -> tuple[int, Step]:
    """`MultiWorkerMirroredStrategy`; Keras' optimizer sums the gradients over workers."""
    rank = int(os.environ["RANK"])
    _one_thread()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        work, model = _build(spec, rank)
        optimizer = _adamw(work, model)
    replica = _train(model, optimizer)

    @tf.function
    def train(batch: Batch, inverse: tf.Tensor) -> tf.Tensor:
        return strategy.run(replica, args=(batch, inverse))

    return rank, _step(work, train)


def alone(spec: JobSpec) -> tuple[int, Step]:
    """Plain TensorFlow in one process."""
    _one_thread()
    rank = int(os.environ["RANK"])
    work, model = _build(spec, rank)
    optimizer = _adamw(work, model)
    return rank, _step(work, tf.function(_train(model, optimizer)))


def _one_thread() -> None:
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _build(spec: JobSpec, rank: int) -> tuple[Work, Model]:
    work = make_work(spec, rank)
    model = Model(spec.model, work.weights)
    model.write(work.initial())
    return work, model


def _train(
    model: Model,
    optimizer: keras.optimizers.Optimizer,
    reduced: Callable[[tf.GradientTape], tf.GradientTape] = lambda tape: tape,
) -> Callable[[Batch, tf.Tensor], tf.Tensor]:
    """Forward, backward and update; `reduced` makes a tape's gradients those of all ranks."""
    variables = _variables(model, model.weights)

    def train(batch: Batch, inverse: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.loss_sum(batch, training=True) * inverse
        optimizer.apply(reduced(tape).gradient(loss, variables))
        return loss

    return train


def _step(work: Work, train: Callable[[Batch, tf.Tensor], tf.Tensor]) -> Step:
    def step(number: int) -> float:
        batch, divisor = work.batch(number)
        return float(train(tensors(batch), tf.constant(1.0 / divisor, work.spec.model.dtype)))

    return step


def _variables(model: Model, weights: Sequence[Weight]) -> list[tf.Variable]:
    """The variables of weights; one weight may be several in Keras."""
    return [variable for weight in weights for variable in model.parameters[weight.name]]


def _adamw(work: Work, model: Model) -> keras.optimizers.Optimizer:
    asked = work.spec.optimizer
    optimizer = keras.optimizers.AdamW(
        learning_rate=work.plan.learning_rate,
        weight_decay=asked.weight_decay,
        beta_1=asked.adam_beta1,
        beta_2=asked.adam_beta2,
        epsilon=asked.adam_epsilon,
        global_clipnorm=work.spec.max_grad_norm,
    )
    optimizer.exclude_from_weight_decay(_variables(model, [w for w in work.weights if not w.decays]))
    optimizer.build(_variables(model, work.weights))
    return optimizer
