"""This rank's shards of the weights in flat variables, and whole weights made of the shards of all ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.shards import Shard
from hvdtrain.tensorflow.buckets import lay_out
from hvdtrain.tensorflow.shards import ShardExchange
from hvdtrain.tensorflow.weights import Parameters, read, write


class HeldWeights(ABC):
    """The weights that ranks train, of which each has its shards, in the Hugging Face layout.

    Attributes:
        own: what this rank updates of each bucket, in one variable for each of the shard's pieces.
        exchange: with the ranks that own the rest.
    """

    def __init__(
        self,
        rules: Rules,
        shards: Sequence[Shard],
        spec: OptimizerSpec,
        parameters: Parameters,
        exchange: ShardExchange,
    ) -> None:
        """Hold zeros.

        Args:
            rules: say in which dtype buckets travel.
            shards: what this rank owns of each bucket of the plan.
            spec: the update rule, which says where shards are cut.
            parameters: the variables that hold each weight, by its name.
            exchange: with the ranks that own the rest.
        """
        self.exchange = exchange
        self._shards, self._parameters = shards, parameters
        self._dtype = parameters[shards[0].bucket.weights[0].name][0].dtype
        self._sent_as = [tf.as_dtype(rules.gathered_as(shard.bucket) or self._dtype) for shard in shards]
        self.own = [
            [tf.Variable(tf.zeros((cut.size,), self._dtype), trainable=False) for cut in shard.pieces(spec)]
            for shard in shards
        ]
        self._shard = {weight.name: shard for shard in shards for weight in shard.bucket.weights}

    def gather(
        self, index: int, parts: Sequence[tf.Variable], name: str, dtype: tf.DType | None = None
    ) -> tf.Tensor:
        """A whole bucket, of which this rank has the pieces of its shard.

        Args:
            index: the bucket's.
            parts: of this rank, as those of `own`.
            name: of the collective, before that of the bucket.
            dtype: in which they travel; None: in the weights'.

        Returns:
            (bucket.size,), of the weights' dtype.
        """
        shard, flats = self._shards[index], [tf.convert_to_tensor(part) for part in parts]
        padding = tf.zeros((shard.size - sum(flat.shape[0] for flat in flats),), self._dtype)
        own = tf.cast(tf.concat([*flats, padding], 0), dtype or self._dtype)
        return tf.cast(self.exchange.gather(shard, own, name)[: shard.bucket.size], self._dtype)

    def whole(self, index: int, name: str) -> dict[str, list[tf.Tensor]]:
        """A bucket's weights by name as the network uses them, in tensors of its variables' shapes."""
        flat = self.gather(index, self.own[index], name, self._sent_as[index])
        return lay_out(self._shards[index].bucket, flat, self._parameters)

    def read(self, weights: Sequence[Weight]) -> Iterator[tuple[str, np.ndarray]]:
        """Copies of some weights by name, in the Hugging Face layout; every rank goes through all of them."""
        wanted = {weight.name for weight in weights}
        for shard in reversed(self._shards):
            if not wanted.isdisjoint(weight.name for weight in shard.bucket.weights):
                yield from ((name, array) for name, array in self._read(shard) if name in wanted)

    @abstractmethod
    def write(self, weight: Weight, array: np.ndarray) -> None:
        """Set a weight from an array in the Hugging Face layout; this rank keeps its part."""
        shard = self._shard[weight.name]
        (theirs, mine), index = shard.part(weight.name), shard.bucket.index
        part, start = array.reshape(-1)[theirs], 0
        for variable in self.own[index]:
            first, last = max(mine.start, start), min(mine.stop, start + variable.shape[0])
            if first < last:
                variable[first - start : last - start].assign(part[first - mine.start : last - mine.start])
            start += variable.shape[0]

    @abstractmethod
    def send(self) -> None:
        """Tell the other ranks what this one has updated; called while TensorFlow traces."""

    def _read(self, shard: Shard) -> Iterator[tuple[str, np.ndarray]]:
        """A bucket's weights as ranks update them, which may be more exact than those they compute with."""
        bucket = shard.bucket
        flat = self.gather(bucket.index, self.own[bucket.index], "masters")
        for weight, part in zip(bucket.weights, tf.split(flat, bucket.sizes), strict=True):
            yield weight.name, part.numpy().reshape(weight.shape)


class FlatWeights(HeldWeights):
    """Shards beside the network's own variables, which have the weights of all ranks."""

    def send(self) -> None:
        """Give the other ranks what this one has updated, and take theirs."""
        for index in range(len(self._shards)):
            for name, parts in self.whole(index, "weights").items():
                for variable, part in zip(self._parameters[name], parts, strict=True):
                    variable.assign(part)

    def write(self, weight: Weight, array: np.ndarray) -> None:
        """See `HeldWeights.write`."""
        super().write(weight, array)
        write(weight, self._parameters[weight.name], array)

    def _read(self, shard: Shard) -> Iterator[tuple[str, np.ndarray]]:
        if self._sent_as[shard.bucket.index] != self._dtype:
            yield from super()._read(shard)
            return
        for weight in shard.bucket.weights:
            yield weight.name, read(weight, self._parameters[weight.name])
