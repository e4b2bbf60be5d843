"""Drives compression policies while TensorFlow traces: the graph holds the collectives, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.compression.protocol import (
    AdasumReduce,
    AllGather,
    AllReduce,
    Policy,
    ReduceScatter,
    Reduction,
    Request,
    State,
)
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.buckets import swap_layout
from hvdtrain.tensorflow.ops import Ops
from hvdtrain.tensorflow.world import reduces_over_gloo


class Driver:
    """Sums buckets over ranks, and keeps the state of their policies.

    Attributes:
        ops: the array verbs, which know this rank's place.
    """

    def __init__(
        self, rules: Rules, seed: int, prefix: str = "", process_set: Any = hvd.global_process_set
    ) -> None:
        """Start without buckets.

        Args:
            rules: whose policies have their first state here.
            seed: of the policies' random numbers.
            prefix: in front of the names of collectives; different for those that may be under way together.
            process_set: the ranks that take part.
        """
        self.ops = Ops(process_set.size(), process_set.rank(), seed)
        self._rules, self._prefix, self._process_set = rules, prefix, process_set
        self._buckets: list[Bucket] = []
        self._states: list[State] = []
        self._wire_bytes = tf.Variable(0, dtype=tf.int64, trainable=False)
        # Gloo's reducescatter takes as long as three or four of its allreduces.
        self._by_alltoall = reduces_over_gloo()

    def add(self, bucket: Bucket, dtype: str) -> None:
        """Take in a bucket, whose index is the number of those before it.

        Args:
            bucket: its layout.
            dtype: of its gradients.
        """
        state = self._rules.policy(bucket).init(self.ops, bucket, dtype)
        self._buckets.append(bucket)
        self._states.append({name: tf.Variable(value, trainable=False) for name, value in state.items()})

    def reduce(
        self, policy: Callable[[Bucket], Policy], flats: Sequence[tf.Tensor], update: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[int, State]]:
        """Sum all buckets; called while TensorFlow traces, or eagerly.

        Args:
            policy: how, of a bucket.
            flats: this rank's gradients, (bucket.size,) for each bucket, in Keras' layout.
            update: number of the update, counted from 1, an int64 scalar.

        Returns:
            (the sums over ranks, the policies' new states by the bucket's index; an array that has not
            changed is its variable).
        """
        work, update = zip(self._buckets, flats, strict=True), tf.convert_to_tensor(update)
        found = [self._reduce(policy(bucket), bucket, flat, update) for bucket, flat in work]
        return [total for total, _ in found], {i: state for i, (_, state) in enumerate(found)}

    def scatter(
        self, policy: Callable[[Bucket], Policy], flats: Sequence[tf.Tensor], update: tf.Tensor
    ) -> tuple[list[tf.Tensor], dict[int, State]]:
        """As `reduce`, but this rank is given its shard of each bucket, in the Hugging Face layout."""
        work, update = zip(self._buckets, flats, strict=True), tf.convert_to_tensor(update)
        found = [self._scatter(policy(bucket), bucket, flat, update) for bucket, flat in work]
        return [total for total, _ in found], {i: state for i, (_, state) in enumerate(found)}

    def commit(self, states: Mapping[int, State]) -> None:
        """Keep new states: the update was applied.

        Args:
            states: by the bucket's index.
        """
        for index, found in states.items():
            for name, variable in self._states[index].items():
                if found[name] is not variable:
                    variable.assign(found[name])

    @property
    def states(self) -> list[tuple[Policy, State]]:
        """Each bucket's policy and its state, variables by name."""
        return [*zip(map(self._rules.policy, self._buckets), self._states, strict=True)]

    @property
    def wire_bytes(self) -> int:
        """Bytes this rank has handed to collectives so far."""
        return int(self._wire_bytes.numpy())

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket, in the Hugging Face layout."""
        for bucket, state in zip(self._buckets, self._states, strict=True):
            yield {name: self._swap(bucket, each, to_keras=False).numpy() for name, each in state.items()}

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        for bucket, state, arrays in zip(self._buckets, self._states, states, strict=True):
            for name, variable in state.items():
                array = tf.constant(arrays[name], variable.dtype)
                variable.assign(self._swap(bucket, array, to_keras=True))

    def sum(self, values: tf.Tensor, name: str) -> tf.Tensor:
        """Sum a few values over ranks, beside the buckets.

        Args:
            values: this rank's, of at least one axis.
            name: of the collective, behind the prefix.
        """
        array, name = self._not_constant(values), f"{self._prefix}{name}"
        among = {"process_set": self._process_set, "ignore_name_scope": True}
        return hvd.allreduce(array, op=hvd.Sum, name=name, **among)

    def _reduce(
        self, policy: Policy, bucket: Bucket, flat: tf.Tensor, update: tf.Tensor
    ) -> tuple[tf.Tensor, State]:
        if not policy.elementwise:
            flat = swap_layout(bucket, flat, to_keras=False)
        total, state = self._drive(policy.reduce, bucket, flat, update)
        return swap_layout(bucket, total, to_keras=True) if not policy.elementwise else total, state

    def _scatter(
        self, policy: Policy, bucket: Bucket, flat: tf.Tensor, update: tf.Tensor
    ) -> tuple[tf.Tensor, State]:
        padding = self.ops.ranks * policy.shard_size(bucket, self.ops.ranks) - bucket.size
        flat = tf.concat([swap_layout(bucket, flat, to_keras=False), tf.zeros((padding,), flat.dtype)], 0)
        return self._drive(policy.scatter, bucket, flat, update)

    def _drive(
        self, reduce: Callable[..., Reduction], bucket: Bucket, flat: tf.Tensor, update: tf.Tensor
    ) -> tuple[tf.Tensor, State]:
        kept = self._states[bucket.index]
        before = {name: tf.convert_to_tensor(variable) for name, variable in kept.items()}
        reduction = reduce(self.ops, bucket, flat, dict(before), update)
        reply, requests = None, 0
        while True:
            try:
                request = reduction.send(reply)
            except StopIteration as stop:
                total, found = stop.value
                break
            name = f"{self._prefix}{type(request).__name__}.bucket{bucket.index}.{requests}"
            reply = self._reply(request, name)
            requests += 1
        return total, {n: kept[n] if value is before[n] else value for n, value in found.items()}

    def _reply(self, request: Request, name: str) -> tf.Tensor:
        # Horovod pairs tensors by name, and the scopes around an operation depend on who calls the function.
        array = self._not_constant(request.array)
        self._wire_bytes.assign_add(array.shape.num_elements() * array.dtype.size)
        among = {"process_set": self._process_set, "ignore_name_scope": True}
        if isinstance(request, AllReduce):
            total = hvd.allreduce(array, op=hvd.Sum, name=name, **among)
            return tf.ensure_shape(total, array.shape)
        if isinstance(request, AllGather):
            every = hvd.allgather(array, name=name, **among)
            return tf.reshape(every, [self.ops.ranks, *array.shape])
        if isinstance(request, ReduceScatter) and not self._by_alltoall:
            mine = hvd.reducescatter(array, op=hvd.Sum, name=name, **among)
            return tf.reshape(mine, array.shape[1:])
        if isinstance(request, AdasumReduce):
            # Horovod takes the dot products of each tensor by itself; its grouped_allreduce of TensorFlow's,
            # unlike PyTorch's, fails with Adasum (0.28.1 asks for the device of a name it never bound).
            parts = [part for part in tf.split(array, request.sizes) if part.shape[0]]
            combined = [
                hvd.allreduce(part, op=hvd.Adasum, name=f"{name}.{i}", ignore_name_scope=True)
                for i, part in enumerate(parts)
            ]
            return tf.ensure_shape(tf.concat(combined, 0), array.shape)
        received = tf.ensure_shape(hvd.alltoall(array, name=name, **among), array.shape)
        return tf.reduce_sum(received, 0) if isinstance(request, ReduceScatter) else received

    def _not_constant(self, array: tf.Tensor) -> tf.Tensor:
        """The same array, of at least one axis, which no optimisation of the graph takes for a constant.

        When TensorFlow optimises a graph it computes what depends on constants alone, collectives among it:
        this rank's would meet nobody where others do not trace, and its result would be that of all steps.
        """
        if tf.executing_eagerly():
            return array
        # All of it, from a place that a variable says: nothing is copied. A reshape would be optimised away.
        zero = tf.cast(tf.minimum(self._wire_bytes, 0), tf.int32)
        return tf.slice(array, tf.fill([array.shape.rank], zero), array.shape)

    def _swap(self, bucket: Bucket, array: tf.Tensor, to_keras: bool) -> tf.Tensor:
        # Only such a policy is shown, and remembers, gradients in Keras' layout.
        elementwise = self._rules.policy(bucket).elementwise and not self._rules.sharded
        swaps = elementwise and array.shape == (bucket.size,)
        return swap_layout(bucket, array, to_keras) if swaps else tf.convert_to_tensor(array)
