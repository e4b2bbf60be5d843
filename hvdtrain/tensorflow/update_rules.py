"""The core's update rules through TensorFlow's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.groups import Setting, setting_of
from hvdtrain.core.update.optimizers import trust_ratio
from hvdtrain.core.update.shards import Shard
from hvdtrain.tensorflow.shards import ShardExchange


@dataclass(frozen=True, eq=False)
class Piece:
    """Numbers that are updated alike: a weight in its variables, or parts of weights in one flat variable.

    Attributes:
        setting: how.
        parts: the weights, and how many elements of each.
        variables: what holds the numbers.
        moments: the optimizer's, each in variables as these.
    """

    setting: Setting
    parts: tuple[tuple[Weight, int], ...]
    variables: tuple[tf.Variable, ...]
    moments: tuple[tuple[tf.Variable, ...], ...]

    def by_weight(self, tensors: Sequence[tf.Tensor]) -> list[list[tf.Tensor]]:
        """Tensors as the variables are, those of each weight by themselves."""
        if len(self.parts) == 1:
            return [list(tensors)]
        (flat,) = tensors
        return [[part] for part in tf.split(flat, [size for _, size in self.parts])]

    def spread(self, ratios: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """A factor of each weight, as factors of the variables."""
        if len(self.parts) == 1:
            return [*ratios] * len(self.variables)
        return [tf.repeat(tf.stack(ratios), [size for _, size in self.parts])]


@dataclass(frozen=True, eq=False)
class Task:
    """One piece's part of an update.

    Attributes:
        piece: what is updated.
        gradients: as its variables.
        rate: its learning rate, a scalar of the weights' dtype.
    """

    piece: Piece
    gradients: list[tf.Tensor]
    rate: tf.Tensor


class Norms:
    """L2 norms of whole weights, of which this rank may have a part."""

    def __init__(self, spec: OptimizerSpec, shards: Sequence[Shard], exchange: ShardExchange | None) -> None:
        """Number the weights that have a trust ratio, on every rank alike.

        Args:
            spec: the update rule.
            shards: what this rank owns of each bucket.
            exchange: with the ranks that own the rest; None: nobody does.
        """
        weights = [w for shard in shards for w in shard.bucket.weights if setting_of(spec, w).adapts]
        self._places = {weight.name: place for place, weight in enumerate(weights)}
        self._exchange = exchange

    @property
    def shared(self) -> bool:
        """Whether other ranks have parts: then all norms are taken at once."""
        return self._exchange is not None

    def __call__(
        self, parts: Sequence[tuple[Weight, int]], *arrays: Sequence[Sequence[tf.Tensor]]
    ) -> list[list[tf.Tensor]]:
        """The norms of each of some arrays, one scalar a weight.

        Args:
            parts: the weights; where they are shared, all that this rank has a part of.
            arrays: this rank's part of each weight, in tensors, and of what there is for it beside it.
        """
        if self._exchange is None:
            return [[_norm(each) for each in array] for array in arrays]
        places, zero = [self._places[weight.name] for weight, _ in parts], tf.zeros((), tf.float64)
        rows = []
        for array in arrays:
            squares = [zero] * len(self._places)
            for place, each in zip(places, array, strict=True):
                squares[place] = tf.add_n([tf.reduce_sum(tf.square(tf.cast(t, tf.float64))) for t in each])
            rows.append(tf.stack(squares))
        norms = tf.sqrt(self._exchange.sum(tf.stack(rows), "trust_ratios"))
        return [[tf.cast(row[place], self._dtype(arrays)) for place in places] for row in tf.unstack(norms)]

    def _dtype(self, arrays: Sequence[Sequence[Sequence[tf.Tensor]]]) -> tf.DType:
        return next(tensor.dtype for array in arrays for each in array for tensor in each)


def update_pieces(spec: OptimizerSpec, norms: Norms, tasks: Sequence[Task], update: tf.Tensor) -> None:
    """Update some pieces; where weights are shared, all that this rank has.

    Args:
        spec: the update rule.
        norms: of weights, for trust ratios.
        tasks: the pieces, and their gradients.
        update: number of the update, counted from 1, a scalar of the weights' dtype.
    """
    if spec.type == "lamb":
        _lamb(spec, norms, tasks, update)
        return
    decays = [task.piece.setting.weight_decay for task in tasks]
    gradients = [task.gradients for task in tasks]
    if spec.type == "lars":
        gradients = _lars(spec, norms, tasks)
        decays = [0.0 if t.piece.setting.adapts else d for t, d in zip(tasks, decays, strict=True)]
    rule = _adamw if spec.type == "adamw" else _sgd
    for task, found, decay in zip(tasks, gradients, decays, strict=True):
        own = zip(*task.piece.moments, strict=True)
        for variable, moments, gradient in zip(task.piece.variables, own, found, strict=True):
            rule(spec, variable, moments, gradient, decay, task.rate, update)


def _lamb(spec: OptimizerSpec, norms: Norms, tasks: Sequence[Task], update: tf.Tensor) -> None:
    steps = []
    for task in tasks:
        own, decay = zip(*task.piece.moments, strict=True), task.piece.setting.weight_decay
        found = zip(task.piece.variables, own, task.gradients, strict=True)
        steps.append([_adam(spec, m, g, task.rate, update) + decay * v for v, m, g in found])
    factors = _factors(norms, tasks, [t.piece.variables for t in tasks], steps, [0.0] * len(tasks), 1.0)
    for task, moves, ratios in zip(tasks, steps, factors, strict=True):
        for variable, step, ratio in zip(task.piece.variables, moves, ratios, strict=True):
            variable.assign_sub((task.rate if ratio is None else task.rate * ratio) * step)


def _lars(spec: OptimizerSpec, norms: Norms, tasks: Sequence[Task]) -> list[list[tf.Tensor]]:
    """What plain SGD is given: gradient and decay, scaled."""
    decays, own = [t.piece.setting.weight_decay for t in tasks], [t.piece.variables for t in tasks]
    gradients = [task.gradients for task in tasks]
    factors = _factors(norms, tasks, own, gradients, decays, spec.trust_coefficient)
    return [
        [
            gradient if ratio is None else ratio * (gradient + decay * variable)
            for variable, gradient, ratio in zip(variables, found, ratios, strict=True)
        ]
        for variables, found, ratios, decay in zip(own, gradients, factors, decays, strict=True)
    ]


def _factors(
    norms: Norms,
    tasks: Sequence[Task],
    variables: Sequence[Sequence[tf.Tensor]],
    steps: Sequence[Sequence[tf.Tensor]],
    decays: Sequence[float],
    coefficient: float,
) -> list[list[tf.Tensor | None]]:
    """The trust ratios of all pieces, as factors of their variables; None for those that have none."""
    adapting = [i for i, task in enumerate(tasks) if task.piece.setting.adapts]
    parts = [part for i in adapting for part in tasks[i].piece.parts]
    ratios: list[tf.Tensor] = []
    if parts or norms.shared:
        own = [each for i in adapting for each in tasks[i].piece.by_weight(variables[i])]
        moved = [each for i in adapting for each in tasks[i].piece.by_weight(steps[i])]
        shares = [decays[i] for i in adapting for _ in tasks[i].piece.parts]
        for weight, move, decay in zip(*norms(parts, own, moved), shares, strict=True):
            ratios.append(trust_ratio(weight, move + decay * weight, tf.where, coefficient))
    found: list[list[tf.Tensor | None]] = [[None] * len(task.piece.variables) for task in tasks]
    for i in adapting:
        count = len(tasks[i].piece.parts)
        found[i], ratios = [*tasks[i].piece.spread(ratios[:count])], ratios[count:]
    return found


def _adam(
    spec: OptimizerSpec,
    moments: Sequence[tf.Variable],
    gradient: tf.Tensor,
    rate: tf.Tensor,
    update: tf.Tensor,
) -> tf.Tensor:
    """Adam's direction; TensorFlow's kernel would take it at once."""
    first, second = moments
    first.assign_add((1.0 - spec.adam_beta1) * (gradient - first))
    second.assign_add((1.0 - spec.adam_beta2) * (tf.square(gradient) - second))
    corrected = first / (1.0 - tf.pow(_like(rate, spec.adam_beta1), update))
    root = tf.sqrt(second / (1.0 - tf.pow(_like(rate, spec.adam_beta2), update)))
    return corrected / (root + spec.adam_epsilon)


def _adamw(
    spec: OptimizerSpec,
    variable: tf.Variable,
    moments: Sequence[tf.Variable],
    gradient: tf.Tensor,
    decay: float,
    rate: tf.Tensor,
    update: tf.Tensor,
) -> None:
    first, second = moments
    if decay:
        variable.assign(variable * (1.0 - rate * decay))
    # ApplyAdam computes lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps): with this epsilon it is
    # the core's rule, whose epsilon comes after the bias correction.
    beta1_power, beta2_power = (
        tf.pow(_like(rate, spec.adam_beta1), update),
        tf.pow(_like(rate, spec.adam_beta2), update),
    )
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=first.handle,
        v=second.handle,
        beta1_power=beta1_power,
        beta2_power=beta2_power,
        lr=rate,
        beta1=_like(rate, spec.adam_beta1),
        beta2=_like(rate, spec.adam_beta2),
        epsilon=spec.adam_epsilon * tf.sqrt(1.0 - beta2_power),
        grad=gradient,
    )


def _sgd(
    spec: OptimizerSpec,
    variable: tf.Variable,
    moments: Sequence[tf.Variable],
    gradient: tf.Tensor,
    decay: float,
    rate: tf.Tensor,
    update: tf.Tensor,
) -> None:
    del update  # plain momentum has no bias correction
    if decay:
        gradient = gradient + decay * variable
    tf.raw_ops.ResourceApplyMomentum(
        var=variable.handle,
        accum=moments[0].handle,
        lr=rate,
        grad=gradient,
        momentum=_like(rate, spec.momentum),
        use_nesterov=spec.nesterov,
    )


def _norm(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """The L2 norm of a weight that lies in several tensors."""
    # l2_loss is half the sum of squares, in one pass that keeps no squares.
    return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(part) for part in parts]))


def _like(tensor: tf.Tensor, value: float) -> tf.Tensor:
    return tf.constant(value, tensor.dtype)
