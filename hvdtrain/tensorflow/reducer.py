"""Gradients in flat buckets, reduced inside the compiled step; data flow gives the overlap with backward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
import tensorflow as tf

from hvdtrain.core.compression.protocol import Policy, State
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.buckets import GradBucket
from hvdtrain.tensorflow.driver import Driver
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
        self._rules, self._now, self._parameters = rules, rules, parameters
        self._update = tf.Variable(0, dtype=tf.int64, trainable=False)
        dtype = parameters[buckets[0].weights[0].name][0].dtype.name
        self._scaled, self._loss_scale = scaled, tf.Variable(1.0, dtype=dtype, trainable=False)
        self._buckets = [GradBucket(bucket, dtype) for bucket in buckets]
        self._driver = Driver(rules, seed, prefix)
        for bucket in buckets:
            self._driver.add(bucket, dtype)
        self._reduced: list[tf.Tensor] = []
        # With sharded gradients: the sums of early micro-batches.
        self._shards: list[tf.Variable] = []
        self._next_states: dict[int, State] = {}
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
        for bucket in self._buckets:
            bucket.start_window()
        for shard in self._shards:
            shard.assign(tf.zeros_like(shard))

    def accumulate(self) -> None:
        """Make the variables in which early micro-batches add up, if they are not there.

        Called before one is traced: TensorFlow traces a function that makes variables twice.
        """
        if not self._rules.shards_gradients:
            for bucket in self._buckets:
                bucket.accumulate()
        elif not self._shards:
            ranks = self._driver.ops.ranks
            for bucket in self._buckets:
                size = self._rules.shard(bucket.layout, ranks, rank=0).size
                self._shards.append(tf.Variable(tf.zeros((size,), bucket.dtype), trainable=False))

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
        flats = [bucket.pack(found) for bucket in self._buckets]
        if self._scaled:
            flats = [flat * (1.0 / self._loss_scale) for flat in flats]
        if self._rules.shards_gradients:
            self._scatter(flats, last)
        elif last:
            flats = [bucket.whole(flat) for bucket, flat in zip(self._buckets, flats, strict=True)]
            reduce = self._driver.scatter if self._rules.sharded else self._driver.reduce
            self._reduced, self._next_states = reduce(self._now.policy, flats, self._update)
        else:
            for bucket, flat in zip(self._buckets, flats, strict=True):
                bucket.add(flat)
        return loss

    def _scatter(self, flats: Sequence[tf.Tensor], last: bool) -> None:
        """Sum a micro-batch over ranks, each of which is given its shards."""
        found, self._next_states = self._driver.scatter(self._now.policy, flats, self._update)
        if last:
            sums = self._shards or [tf.zeros_like(each) for each in found]
            self._reduced = [each + total for each, total in zip(found, sums, strict=True)]
            return
        for shard, each in zip(self._shards, found, strict=True):
            shard.assign_add(each)

    def finish(self) -> list[tf.Tensor]:
        """The flat gradients of the window summed over ranks, one a bucket: whole, or this rank's shard."""
        return self._reduced

    def exchange(self, policy: Policy, weights: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Have a policy replace the weights, between two windows, and keep its new state.

        Args:
            policy: with the state of the one this reducer was made for.
            weights: flat, one tensor a bucket; called while TensorFlow traces.

        Returns:
            The new weights, flat, one tensor a bucket.
        """
        found, states = self._driver.reduce(lambda bucket: policy, weights, self._update)
        self._driver.commit(states)
        return found

    def start_exchange(self, policy: Policy, weights: Sequence[tf.Tensor]) -> None:
        """Begin an exchange during which there may be windows whose policies leave its state alone.

        Args:
            policy: as in `exchange`, but one that gives the weights back as they are.
            weights: as in `exchange`; called eagerly.
        """
        if policy not in self._exchanges:
            exchange = tf.function(lambda *flats: self.exchange(policy, flats), autograph=False)
            # Traced here: the thread would trace while this one may be tracing something else.
            self._exchanges[policy] = exchange.get_concrete_function(*weights)
        self._exchanging = _in_background(lambda: self._exchanges[policy](*weights))

    def finish_exchange(self) -> None:
        """Wait for the exchange that has begun, and keep the policy's new state."""
        self._exchanging.result()

    @property
    def wire_bytes(self) -> int:
        """Bytes this rank has handed to collectives so far."""
        return self._driver.wire_bytes

    def commit(self) -> None:
        """Keep the policy's new state: the update was applied."""
        self._driver.commit(self._next_states)

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        """Copies of this rank's policy state, a mapping a bucket, in the Hugging Face layout."""
        return self._driver.read()

    def write(self, states: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Set what `read` read."""
        self._driver.write(states)


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
