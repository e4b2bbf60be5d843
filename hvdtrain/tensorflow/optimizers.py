"""The core's update rules on weights in variables, or on this rank's shard of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

import numpy as np
import tensorflow as tf

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.groups import setting_of
from hvdtrain.core.update.shards import Shard
from hvdtrain.tensorflow.buckets import pack, unpack
from hvdtrain.tensorflow.flat_weights import HeldWeights
from hvdtrain.tensorflow.update_rules import Norms, Piece, Task, update_pieces
from hvdtrain.tensorflow.weights import Parameters, read, write


class Optimizer:
    """The spec's update rule, weight by weight; `apply` is called while TensorFlow traces.

    Where buckets are sharded, a rank has the moments of its shards alone, and updates the weights in them.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        shards: Sequence[Shard],
        parameters: Parameters,
        weights: HeldWeights | None = None,
    ) -> None:
        """Create the moments.

        Args:
            spec: the update rule.
            shards: what this rank owns of each bucket of the plan.
            parameters: the variables that hold each weight, by its name.
            weights: hold this rank's shards; None: each rank has all.
        """
        self._spec, self._shards, self._weights = spec, shards, weights
        self._exchange = None if weights is None else weights.exchange
        self._parameters, self._norms = parameters, Norms(spec, shards, self._exchange)
        make = self._by_weight if weights is None else self._flat
        self._pieces = [make(shard) for shard in shards]

    def norm(self, gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """The global L2 norm, a scalar.

        Args:
            gradients: flat, one a bucket: (shard.size,).
        """
        if self._exchange is None:
            # l2_loss is half the sum of squares, in one pass that keeps no squares.
            return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(gradient) for gradient in gradients]))
        squares = [tf.reduce_sum(tf.square(tf.cast(gradient, tf.float64))) for gradient in gradients]
        total = self._exchange.sum(tf.add_n(squares)[None], "norm")
        return tf.cast(tf.sqrt(total[0]), gradients[0].dtype)

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, update: tf.Tensor) -> None:
        """One update of every weight.

        Args:
            gradients: flat, one a bucket, clipped: (shard.size,).
            learning_rate: of this update, a scalar of the weights' dtype.
            update: its number, counted from 1, a scalar of the weights' dtype.
        """
        tasks = [
            Task(piece, parts, self._rate(piece, learning_rate))
            for shard, pieces, flat in zip(self._shards, self._pieces, gradients, strict=True)
            for piece, parts in zip(pieces, self._cut(shard, pieces, flat), strict=True)
        ]
        if self._weights is None:
            for task in tasks:
                update_pieces(self._spec, self._norms, [task], update)
            return
        update_pieces(self._spec, self._norms, tasks, update)
        self._weights.send()

    def read(self) -> Iterator[tuple[str, np.ndarray]]:
        """The moments as `WEIGHT.exp_avg`, one at a time, in the Hugging Face layout.

        Where buckets are sharded, every rank goes through all of them.
        """
        for shard, pieces in zip(self._shards, self._pieces, strict=True):
            for number, moment in enumerate(MOMENTS[self._spec.type]):
                yield from self._read(shard, pieces, number, moment)

    def write(self, arrays: Iterable[tuple[str, np.ndarray]], updates: int) -> None:
        """Set what `read` yields, in its order, after so many updates."""
        del updates  # every `apply` is passed its number
        given = iter(arrays)
        for shard, pieces in zip(self._shards, self._pieces, strict=True):
            for number, moment in enumerate(MOMENTS[self._spec.type]):
                own = shard.take(moment, given)
                sizes = [sum(size for _, size in piece.parts) for piece in pieces]
                for piece, size, end in zip(pieces, sizes, accumulate(sizes), strict=True):
                    part = own[end - size : end]
                    if self._exchange is None:
                        ((weight, _),) = piece.parts
                        write(weight, piece.moments[number], part.reshape(weight.shape))
                    else:
                        piece.moments[number][0].assign(part)

    def read_weights(self) -> list[tf.Tensor]:
        """Copies of the weights, flat, one tensor a bucket."""
        return [pack(shard.bucket, self._parameters) for shard in self._shards]

    def write_weights(self, weights: Sequence[tf.Tensor]) -> None:
        """Set every weight.

        Args:
            weights: flat, one a bucket.
        """
        for shard, flat in zip(self._shards, weights, strict=True):
            for name, parts in unpack(shard.bucket, flat, self._parameters).items():
                for variable, part in zip(self._parameters[name], parts, strict=True):
                    variable.assign(part)

    @property
    def wire_bytes(self) -> int:
        """Bytes of weights that this rank has handed to collectives so far."""
        return 0 if self._exchange is None else self._exchange.wire_bytes

    def _by_weight(self, shard: Shard) -> list[Piece]:
        found = []
        for weight in shard.bucket.weights:
            variables = self._parameters[weight.name]
            moments = tuple(
                tuple(_zeros(variable.shape, variable.dtype) for variable in variables)
                for _ in MOMENTS[self._spec.type]
            )
            parts = ((weight, weight.size),)
            found.append(Piece(setting_of(self._spec, weight), parts, variables, moments))
        return found

    def _flat(self, shard: Shard) -> list[Piece]:
        assert self._weights is not None
        found = []
        own = self._weights.own[shard.bucket.index]
        for cut, variable in zip(shard.pieces(self._spec), own, strict=True):
            moments = (_zeros(variable.shape, variable.dtype) for _ in MOMENTS[self._spec.type])
            found.append(Piece(cut.setting, cut.parts, (variable,), tuple((m,) for m in moments)))
        return found

    def _rate(self, piece: Piece, learning_rate: tf.Tensor) -> tf.Tensor:
        factor = piece.setting.learning_rate_factor
        return learning_rate if factor == 1.0 else learning_rate * factor

    def _cut(self, shard: Shard, pieces: Sequence[Piece], flat: tf.Tensor) -> list[list[tf.Tensor]]:
        """The gradients of each piece."""
        if self._exchange is None:
            return [*unpack(shard.bucket, flat, self._parameters).values()]
        sizes = [piece.variables[0].shape[0] for piece in pieces]
        return [[part] for part in tf.split(flat[: sum(sizes)], sizes)] if sizes else []

    def _read(
        self, shard: Shard, pieces: Sequence[Piece], number: int, moment: str
    ) -> Iterator[tuple[str, np.ndarray]]:
        weights = shard.bucket.weights
        if self._weights is None:
            for weight, piece in zip(weights, pieces, strict=True):
                yield f"{weight.name}.{moment}", read(weight, piece.moments[number])
            return
        own = [piece.moments[number][0] for piece in pieces]
        flat = self._weights.gather(shard.bucket.index, own, "moments")
        for weight, end in zip(weights, accumulate(shard.bucket.sizes), strict=True):
            yield f"{weight.name}.{moment}", flat[end - weight.size : end].numpy().reshape(weight.shape)


def _zeros(shape: Sequence[int], dtype: tf.DType) -> tf.Variable:
    return tf.Variable(tf.zeros(shape, dtype), trainable=False)
