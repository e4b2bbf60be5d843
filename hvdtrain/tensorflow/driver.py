"""Runs a compression policy while TensorFlow traces: collectives go into the graph, data flow orders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.compression.protocol import AdasumReduce, AllGather, AllReduce, Policy, Request, State
from hvdtrain.core.families.weights import SAME, Weight
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.ops import Ops
from hvdtrain.tensorflow.weights import Parameters


@dataclass(frozen=True)
class Driver:
    """Sums buckets over ranks; called while TensorFlow traces, or eagerly.

    Attributes:
        ops: the array verbs, which know this rank's place.
        prefix: in front of the names of collectives; different for those that may be under way together.
        wire_bytes: an int64 scalar to which the bytes handed to collectives are added.
        process_set: the ranks that take part.
    """

    ops: Ops
    prefix: str
    wire_bytes: tf.Variable
    process_set: Any = hvd.global_process_set

    def reduce(
        self,
        policy: Policy,
        bucket: Bucket,
        flat: tf.Tensor,
        state: Mapping[str, tf.Tensor],
        update: tf.Tensor,
    ) -> tuple[tf.Tensor, State]:
        """Sum one bucket.

        Args:
            policy: how.
            bucket: its layout.
            flat: this rank's gradients, (bucket.size,), in Keras' layout.
            state: the policy's, by name.
            update: number of the update, counted from 1, an int64 scalar.

        Returns:
            (the sum over ranks, the new state under the same names; what did not change is the same object).
        """
        if not policy.elementwise:
            flat = swap_layout(bucket, flat, to_keras=False)
        reduction = policy.reduce(self.ops, bucket, flat, dict(state), update)
        reply, requests = None, 0
        while True:
            try:
                request = reduction.send(reply)
            except StopIteration as stop:
                total, found = stop.value
                break
            reply = self._reply(
                request, f"{self.prefix}{type(request).__name__}.bucket{bucket.index}.{requests}"
            )
            requests += 1
        return total if policy.elementwise else swap_layout(bucket, total, to_keras=True), found

    def not_constant(self, array: tf.Tensor) -> tf.Tensor:
        """The same array, of at least one axis, which no optimisation of the graph takes for a constant.

        When TensorFlow optimises a graph it computes what depends on constants alone, collectives among it:
        this rank's would meet nobody where others do not trace, and its result would be that of all steps.
        """
        if tf.executing_eagerly():
            return array
        # All of it, from a place that a variable says: nothing is copied. A reshape would be optimised away.
        zero = tf.cast(tf.minimum(self.wire_bytes, 0), tf.int32)
        return tf.slice(array, tf.fill([array.shape.rank], zero), array.shape)

    def _reply(self, request: Request, name: str) -> tf.Tensor:
        # Horovod pairs tensors by name, and the scopes around an operation depend on who calls the function.
        array = self.not_constant(request.array)
        self.wire_bytes.assign_add(array.shape.num_elements() * array.dtype.size)
        among = {"process_set": self.process_set, "ignore_name_scope": True}
        if isinstance(request, AllReduce):
            total = hvd.allreduce(array, op=hvd.Sum, name=name, **among)
            return tf.ensure_shape(total, array.shape)
        if isinstance(request, AllGather):
            every = hvd.allgather(array, name=name, **among)
            return tf.reshape(every, [self.ops.ranks, *array.shape])
        if isinstance(request, AdasumReduce):
            # Horovod takes the dot products of each tensor by itself; its grouped_allreduce of TensorFlow's,
            # unlike PyTorch's, fails with Adasum (0.28.1 asks for the device of a name it never bound).
            parts = [part for part in tf.split(array, request.sizes) if part.shape[0]]
            combined = [
                hvd.allreduce(part, op=hvd.Adasum, name=f"{name}.{i}", ignore_name_scope=True)
                for i, part in enumerate(parts)
            ]
            return tf.ensure_shape(tf.concat(combined, 0), array.shape)
        return tf.ensure_shape(hvd.alltoall(array, name=name, **among), array.shape)


def pack(bucket: Bucket, gradients: Mapping[str, Sequence[tf.Tensor]]) -> tf.Tensor:
    """A bucket's gradients behind each other, sparse ones made dense.

    Args:
        bucket: its layout.
        gradients: those of the variables that hold a weight, by its name.
    """
    found = [gradient for weight in bucket.weights for gradient in gradients[weight.name]]
    return tf.concat([tf.reshape(tf.convert_to_tensor(gradient), [-1]) for gradient in found], 0)


def unpack(bucket: Bucket, flat: tf.Tensor, parameters: Parameters) -> dict[str, list[tf.Tensor]]:
    """The inverse of `pack`: tensors of the variables' shapes."""
    held = [variable for weight in bucket.weights for variable in parameters[weight.name]]
    parts = iter(tf.split(flat, [variable.shape.num_elements() for variable in held]))
    return {
        weight.name: [tf.reshape(next(parts), variable.shape) for variable in parameters[weight.name]]
        for weight in bucket.weights
    }


def swap_layout(bucket: Bucket, flat: tf.Tensor, to_keras: bool) -> tf.Tensor:
    """A flat bucket with its weights in Keras' layout, or in Hugging Face's."""
    parts = tf.split(flat, bucket.sizes)
    for i, weight in enumerate(bucket.weights):
        if weight.layout != SAME:
            swap = _split if to_keras else _join
            parts[i] = swap(weight, parts[i])
    return tf.concat(parts, 0)


def _split(weight: Weight, flat: tf.Tensor) -> tf.Tensor:
    """`Layout.split`, of flat arrays: the variables lie behind each other."""
    found, layout = tf.reshape(flat, weight.shape), weight.layout
    if layout.axes is not None:
        found = tf.transpose(found, layout.axes)
    parts = tf.split(found, layout.parts, axis=-1) if layout.parts > 1 else [found]
    return tf.concat([tf.reshape(part, [-1]) for part in parts], 0)


def _join(weight: Weight, flat: tf.Tensor) -> tf.Tensor:
    """`Layout.join`, of flat arrays."""
    layout = weight.layout
    *outer, last = layout.shape(weight.shape)
    parts = [tf.reshape(part, [*outer, last // layout.parts]) for part in tf.split(flat, layout.parts)]
    found = tf.concat(parts, -1)
    return tf.reshape(found if layout.axes is None else tf.transpose(found, layout.inverse), [-1])


def variables(state: State) -> State:
    """Variables that start with a policy's state."""
    return {name: tf.Variable(value, trainable=False) for name, value in state.items()}
