"""What ranks that own shards of the weights tell each other."""

from __future__ import annotations

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

    def gather(self, shard: Shard, own: tf.Tensor, name: str) -> tf.Tensor:
        """A whole bucket, of which this rank has a part.

        Args:
            shard: of this rank.
            own: what is in it, (shard.size,).
            name: of the collective, before that of the bucket.

        Returns:
            (shard.padded,).
        """
        self._wire_bytes.assign_add(shard.size * own.dtype.size)
        # No arithmetic is done on the way, and Horovod's releases do not carry bfloat16.
        sent = tf.bitcast(own, tf.float16) if own.dtype == tf.bfloat16 else own
        each = f"shards.{name}.bucket{shard.bucket.index}"
        whole = hvd.allgather(sent, name=each, ignore_name_scope=True)
        return tf.bitcast(tf.ensure_shape(whole, (shard.padded,)), own.dtype)

    @property
    def wire_bytes(self) -> int:
        """Bytes of shards that this rank has handed to collectives so far."""
        return int(self._wire_bytes.numpy())
