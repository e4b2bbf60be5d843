"""Gradients in flat buckets, reduced inside the compiled step; data flow gives the overlap with backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.compression.protocol import AdasumReduce, AllGather, AllReduce, Policy, Request, State
from hvdtrain.core.compression.rules import Rules
from hvdtrain.tensorflow.ops import Ops


class Reducer:
    """Owns the gradients: adds up a window's, and sums each bucket over ranks.

    `backward`, `finish` and `commit` are called while TensorFlow traces; the last backward places one
    reduction a bucket into the graph, by the policy in force at that update. Gradients lie in Keras' layout;
    a policy that looks at shapes or positions is shown Hugging Face's, as in the other framework.
    """

    def __init__(
        self,
        rules: Rules,
        buckets: Sequence[Bucket],
        parameters: Mapping[str, tf.Variable],
        seed: int,
        scaled: bool = False,
        prefix: str = "",
    ) -> None:
        """Lay out the buckets.

        Args:
            rules: how each bucket is summed over ranks.
            buckets: the plan's layout.
            parameters: by weight name.
            seed: of the policy's random numbers.
            scaled: whether windows have a loss scale.
            prefix: of the names of collectives: two reducers of one program need different ones.
        """
        self._rules, self._buckets, self._parameters = rules, buckets, parameters
        self._ops, self._prefix = Ops(hvd.size(), hvd.rank(), seed), prefix
        self._update, self._now = tf.Variable(0, dtype=tf.int64, trainable=False), rules
        self._totals: list[tf.Variable] = []
        self._reduced: list[tf.Tensor] = []
        dtype = next(iter(parameters.values())).dtype.name
        self._scaled, self._loss_scale = scaled, tf.Variable(1.0, dtype=dtype, trainable=False)
        self._states = [_variables(rules.policy(b).init(self._ops, b, dtype)) for b in buckets]
        self._changes: list[State] = [{} for _ in buckets]
        self._wire_bytes = tf.Variable(0, dtype=tf.int64, trainable=False)

    def start_window(self, update: int, loss_scale: float = 1.0) -> None:
        """Forget the last window's gradients.

        Args:
            update: number of the update that the window is for, counted from 1.
            loss_scale: a power of two that its losses are multiplied with before backward, and its gradients
                divided by where they enter their bucket.
        """
        self._loss_scale.assign(loss_scale)
        self._now = self._rules.at(update)
        self._update.assign(update)
        for total in self._totals:
            total.assign(tf.zeros_like(total))

    def backward(self, forward: Callable[[], tf.Tensor], last: bool) -> tf.Tensor:
        """Run one micro-batch and add its gradients to the window's.

        Args:
            forward: computes the summed loss, already divided by W.
            last: whether it is the window's last; then every bucket's reduction is placed behind it.

        Returns:
            The loss, without the loss scale.
        """
        with tf.GradientTape() as tape:
            loss = forward()
            scaled = loss * self._loss_scale if self._scaled else loss
        variables = list(self._parameters.values())
        found = tape.gradient(scaled, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        flats = [_pack(bucket, dict(zip(self._parameters, found, strict=True))) for bucket in self._buckets]
        if self._scaled:
            flats = [flat * (1.0 / self._loss_scale) for flat in flats]
        if not last:
            self._add(flats)
            return loss
        # Without accumulation no earlier backward was traced, and there are no totals.
        if self._totals:
            flats = [total + flat for total, flat in zip(self._totals, flats, strict=True)]
        self._reduced = self._drive_all([self._now.policy(b) for b in self._buckets], flats)
        return loss

    def finish(self) -> list[tf.Tensor]:
        """The flat gradients of the window summed over ranks, one tensor a bucket."""
        return self._reduced

    def exchange(self, policy: Policy, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Have a policy replace the weights, between two windows, and keep its new state.

        Args:
            policy: with the state of the one this reducer was made for.
            weights: flat, one tensor a bucket; called while TensorFlow traces.

        Returns:
            The new weights, flat, one tensor a bucket.
        """
        found = self._drive_all([policy] * len(self._buckets), weights)
        self.commit()
        return found

    @property
    def wire_bytes(self) -> int:
        """Bytes this rank has handed to collectives so far."""
        return int(self._wire_bytes.numpy())

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        for variables, changes in zip(self._states, self._changes, strict=True):
            for name, value in changes.items():
                variables[name].assign(value)

    def read(self) -> list[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket, in the Hugging Face layout."""
        return [
            {name: self._told(bucket, variable, to_keras=False).numpy() for name, variable in state.items()}
            for bucket, state in zip(self._buckets, self._states, strict=True)
        ]

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        for bucket, variables, arrays in zip(self._buckets, self._states, states, strict=True):
            for name, variable in variables.items():
                array = tf.constant(arrays[name], variable.dtype)
                variable.assign(self._told(bucket, array, to_keras=True))

    def _told(self, bucket: Bucket, array: tf.Tensor, to_keras: bool) -> tf.Tensor:
        # Only such a policy is shown, and remembers, gradients in Keras' layout.
        moves = self._rules.policy(bucket).elementwise and array.shape == (bucket.size,)
        return _swap_layout(bucket, array, to_keras) if moves else tf.convert_to_tensor(array)

    def _add(self, flats: list[tf.Tensor]) -> None:
        if not self._totals:
            with tf.init_scope():
                self._totals = [tf.Variable(tf.zeros(f.shape, f.dtype), trainable=False) for f in flats]
        for total, flat in zip(self._totals, flats, strict=True):
            total.assign_add(flat)

    def _drive_all(self, policies: Sequence[Policy], flats: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        work = zip(policies, self._buckets, flats, self._states, strict=True)
        return [self._drive(*bucket) for bucket in work]

    def _drive(self, policy: Policy, bucket: Bucket, flat: tf.Tensor, variables: State) -> tf.Tensor:
        state = {name: tf.convert_to_tensor(variable) for name, variable in variables.items()}
        if not policy.elementwise:
            flat = _swap_layout(bucket, flat, to_keras=False)
        reduction = policy.reduce(self._ops, bucket, flat, dict(state), tf.convert_to_tensor(self._update))
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
        self._changes[bucket.index] = {n: value for n, value in found.items() if value is not state[n]}
        return total if policy.elementwise else _swap_layout(bucket, total, to_keras=True)

    def _reply(self, request: Request, name: str) -> tf.Tensor:
        array = request.array
        self._wire_bytes.assign_add(array.shape.num_elements() * array.dtype.size)
        if isinstance(request, AllReduce):
            return tf.ensure_shape(hvd.allreduce(array, op=hvd.Sum, name=name), array.shape)
        if isinstance(request, AllGather):
            return tf.reshape(hvd.allgather(array, name=name), [self._ops.ranks, *array.shape])
        if isinstance(request, AdasumReduce):
            # Horovod takes the dot products of each tensor by itself; its grouped_allreduce of TensorFlow's,
            # unlike PyTorch's, fails with Adasum (0.28.1 asks for the device of a name it never bound).
            parts = [part for part in tf.split(array, request.sizes) if part.shape[0]]
            combined = [
                hvd.allreduce(part, op=hvd.Adasum, name=f"{name}.{i}") for i, part in enumerate(parts)
            ]
            return tf.ensure_shape(tf.concat(combined, 0), array.shape)
        return tf.ensure_shape(hvd.alltoall(array, name=name), array.shape)


def _pack(bucket: Bucket, gradients: Mapping[str, tf.Tensor]) -> tf.Tensor:
    return tf.concat([tf.reshape(tf.convert_to_tensor(gradients[w.name]), [-1]) for w in bucket.weights], 0)


def _swap_layout(bucket: Bucket, flat: tf.Tensor, to_keras: bool) -> tf.Tensor:
    parts = tf.split(flat, bucket.sizes)
    for i, weight in enumerate(bucket.weights):
        if weight.transposed:
            shape = weight.shape if to_keras else weight.shape[::-1]
            parts[i] = tf.reshape(tf.transpose(tf.reshape(parts[i], shape)), [-1])
    return tf.concat(parts, 0)


def _variables(state: State) -> State:
    return {name: tf.Variable(value, trainable=False) for name, value in state.items()}
