"""What ranks that own shards of the weights tell each other."""

from __future__ import annotations

from collections.abc import Sequence

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.update.shards import Shard


class ShardExchange:
    """Sums over ranks, and whole buckets from their shards."""

    def __init__(self) -> None:
        """Nothing has been sent."""
        self._wire_bytes = tf.Variable(0, dtype=tf.int64, trainable=False)

    def sum(self, values: tf.Tensor, name: str) -> tf.Tensor:
        """The element-wise sum over ranks.

        Args:
            values: of the same shape on every rank.
            name: of the collective.
        """
        total = hvd.allreduce(values, op=hvd.Sum, name=f"shards.{name}", ignore_name_scope=True)
        return tf.ensure_shape(total, values.shape)

    def gather(self, shards: Sequence[Shard], own: Sequence[tf.Tensor], name: str) -> list[tf.Tensor]:
        """Whole buckets, each of which this rank has a part of.

        Args:
            shards: of this rank, one a bucket.
            own: what is in them, (shard.size,) for each.
            name: of the collectives.

        Returns:
            (shard.padded,) for each.
        """
        found = []
        for shard, part in zip(shards, own, strict=True):
            self._wire_bytes.assign_add(shard.size * part.dtype.size)
            each = f"shards.{name}.bucket{shard.bucket.index}"
            whole = hvd.allgather(part, name=each, ignore_name_scope=True)
            found.append(tf.ensure_shape(whole, (shard.padded,)))
        return found

    @property
    def wire_bytes(self) -> int:
        """Bytes of shards that this rank has handed to collectives so far."""
        return int(self._wire_bytes.numpy())
