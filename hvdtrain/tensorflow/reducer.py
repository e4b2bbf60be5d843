"""Gradients in flat buckets, reduced inside the compiled step; data flow gives the overlap with backward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.compression.protocol import Policy, State
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.driver import Driver, pack, swap_layout, variables
from hvdtrain.tensorflow.ops import Ops
from hvdtrain.tensorflow.weights import Parameters


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
        parameters: Parameters,
        seed: int,
        scaled: bool = False,
        prefix: str = "",
    ) -> None:
        """Lay out the buckets.

        Args:
            rules: how each bucket is summed over ranks.
            buckets: the plan's layout.
            parameters: the variables that hold each weight, by its name.
            seed: of the policy's random numbers.
            scaled: whether windows have a loss scale.
            prefix: of the names of collectives: two reducers of one program need different ones.
        """
        self._rules, self._buckets, self._parameters = rules, buckets, parameters
        ops = Ops(hvd.size(), hvd.rank(), seed)
        self._driver = Driver(ops, prefix, tf.Variable(0, dtype=tf.int64, trainable=False))
        self._update, self._now = tf.Variable(0, dtype=tf.int64, trainable=False), rules
        self._totals: list[tf.Variable] = []
        self._reduced: list[tf.Tensor] = []
        dtype = parameters[buckets[0].weights[0].name][0].dtype.name
        self._scaled, self._loss_scale = scaled, tf.Variable(1.0, dtype=dtype, trainable=False)
        self._states = [variables(rules.policy(b).init(ops, b, dtype)) for b in buckets]
        self._changes: list[State] = [{} for _ in buckets]
        self._exchanges: dict[Policy, Callable[..., object]] = {}
        self._exchanging: Future[None] = Future()

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
        found = tape.gradient(
            scaled, dict(self._parameters), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        flats = [pack(bucket, found) for bucket in self._buckets]
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

    def start_exchange(self, policy: Policy, weights: Sequence[tf.Tensor]) -> None:
        """Begin an exchange during which there may be windows whose policies leave its state alone.

        Args:
            policy: as in `exchange`, but one that gives the weights back as they are.
            weights: as in `exchange`; called eagerly.
        """
        if policy not in self._exchanges:
            exchange = tf.function(lambda *flats: self.exchange(policy, flats), autograph=False)
            # Traced here: this object takes note of what is traced, for one function at a time.
            self._exchanges[policy] = exchange.get_concrete_function(*weights)
        self._exchanging = _in_background(lambda: self._exchanges[policy](*weights))

    def finish_exchange(self) -> None:
        """Wait for the exchange that has begun, and keep the policy's new state."""
        self._exchanging.result()

    @property
    def wire_bytes(self) -> int:
        """Bytes this rank has handed to collectives so far."""
        return int(self._driver.wire_bytes.numpy())

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        for state, changes in zip(self._states, self._changes, strict=True):
            for name, value in changes.items():
                state[name].assign(value)

    def read(self) -> list[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket, in the Hugging Face layout."""
        return [
            {name: self._told(bucket, variable, to_keras=False).numpy() for name, variable in state.items()}
            for bucket, state in zip(self._buckets, self._states, strict=True)
        ]

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        for bucket, state, arrays in zip(self._buckets, self._states, states, strict=True):
            for name, variable in state.items():
                array = tf.constant(arrays[name], variable.dtype)
                variable.assign(self._told(bucket, array, to_keras=True))

    def _told(self, bucket: Bucket, array: tf.Tensor, to_keras: bool) -> tf.Tensor:
        # Only such a policy is shown, and remembers, gradients in Keras' layout.
        moves = self._rules.policy(bucket).elementwise and array.shape == (bucket.size,)
        return swap_layout(bucket, array, to_keras) if moves else tf.convert_to_tensor(array)

    def _add(self, flats: list[tf.Tensor]) -> None:
        if not self._totals:
            with tf.init_scope():
                self._totals = [tf.Variable(tf.zeros(f.shape, f.dtype), trainable=False) for f in flats]
        for total, flat in zip(self._totals, flats, strict=True):
            total.assign_add(flat)

    def _drive_all(self, policies: Sequence[Policy], flats: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        work = zip(policies, self._buckets, flats, self._states, strict=True)
        return [self._drive(*bucket) for bucket in work]

    def _drive(self, policy: Policy, bucket: Bucket, flat: tf.Tensor, state: State) -> tf.Tensor:
        before = {name: tf.convert_to_tensor(variable) for name, variable in state.items()}
        total, found = self._driver.reduce(policy, bucket, flat, before, tf.convert_to_tensor(self._update))
        self._changes[bucket.index] = {n: value for n, value in found.items() if value is not before[n]}
        return total


def _in_background(call: Callable[[], object]) -> Future[None]:
    """Makes a call on a thread of its own: TensorFlow's functions return when all is done."""
    done: Future[None] = Future()

    def work() -> None:
        try:
            call()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    # A daemon: a rank that has failed does not wait for the others to end.
    threading.Thread(target=work, name="hvdtrain-exchange", daemon=True).start()
    return done
