"""Gradients of a user's own training step: added up, and summed over ranks inside that step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import horovod.tensorflow as hvd
import tensorflow as tf

from hvdtrain.core.compression.protocol import State
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.dropin import Parameter, Settings, accumulator, known_to_all, lay_out
from hvdtrain.core.update.optimizers import clip_factor
from hvdtrain.tensorflow.buckets import GradBucket
from hvdtrain.tensorflow.driver import Driver
from hvdtrain.tensorflow.dropin.accumulation import Accumulation
from hvdtrain.tensorflow.dropin.agreement import check_structure, check_values, parameters_of
from hvdtrain.tensorflow.dropin.arguments import Reach
from hvdtrain.tensorflow.dropin.messages import broadcast_variables
from hvdtrain.tensorflow.world import reduces_over_mpi

_Gradients = Sequence[tf.Tensor | None]
_ALL = Reach()


_live: weakref.WeakSet[Gradients] = weakref.WeakSet()


class Gradients:
    """Sums the gradients of a list of variables over ranks, a window of micro-batches at a time.

    `micro_batch` is called while TensorFlow traces, or eagerly. Ranks must have made the same objects in the
    same order.

    Attributes:
        accumulation: the micro-batches of the window.
        driver: sums buckets over ranks.
        buckets: of all variables; those whose gradients stay this rank's own come last.
    """

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[tf.Variable],
        prefix: str,
        options: Mapping[str, Any] | None = None,
        reach: Reach = _ALL,
    ) -> None:
        """Lay out the buckets, and compare them with the other ranks'; every rank calls it.

        Args:
            settings: the wrapper's arguments.
            sources: whose gradients come, in this order; TensorFlow's or Keras' variables.
            prefix: of the names of collectives, different for every object.
            options: whatever else must be equal on all ranks, by the names that errors give.
            reach: whose gradients are reduced, and over which ranks.

        Raises:
            SpecError: the settings do not fit the model or the job.
            TrainingError: ranks differ in their settings, or in their models.
        """
        self.settings, self.prefix, self._reach = settings, prefix, reach
        # Weak: what is known of a tape's model must not keep the model.
        self._sources = [weakref.ref(source) for source in sources]
        self._parameters = parameters_of(sources)
        kinds = [reach.is_local(source) for source in sources]
        shared = [p for p, is_local in zip(self._parameters, kinds, strict=True) if not is_local]
        local = [p for p, is_local in zip(self._parameters, kinds, strict=True) if is_local]
        check_structure(shared, settings, options, reach.process_set)
        settings.rules.check([p.name for p in self._parameters])
        settings.rules.check_ranks(reach.process_set.size(), reduces_over_mpi())
        sent = lay_out([_as_matrix(p) for p in shared], settings)
        kept = lay_out([_as_matrix(p) for p in local], settings, first=len(sent))
        self._sent = len(sent)
        dtypes = {p.name: accumulator(p) for p in self._parameters}
        self.buckets = [GradBucket(each, dtypes[each.weights[0].name]) for each in (*sent, *kept)]
        with tf.init_scope():
            self.driver = Driver(settings.rules, 0, prefix, reach.process_set)
            for bucket in self.buckets[: self._sent]:
                self.driver.add(bucket.layout, bucket.dtype)
            self.accumulation = Accumulation(settings, self.driver, self.buckets)
        _live.add(self)
        # Whether the sources, and what else, are compared when the second window begins.
        self.compare_values_at_second_window = True
        self.compared_besides: list[tf.Variable] = []
        # Whether each window sums how many ranks were told to stop, also where it has no samples to sum.
        self.tells_of_requests = False

    def micro_batch(
        self, gradients: _Gradients, samples: tf.Tensor | None, then: Callable[[_Gradients], None]
    ) -> None:
        """Add one micro-batch's gradients to the window; when it is full, reduce it and go on.

        Args:
            gradients: of the sources, in their order, without loss scale; None where there is none.
            samples: how many the micro-batch has, an integer scalar, where the settings go by samples.
            then: takes the window's gradients, reduced and clipped, None where it was None.
        """
        own = tf.cast(samples, tf.float64) if self.settings.by_samples else tf.constant(1.0, tf.float64)

        def close(flats: Sequence[tf.Tensor], own: tf.Tensor) -> None:
            then(self._reduce(gradients, flats, own))

        self.accumulation.enter(self._flats(gradients, own), own, close)

    @property
    def sources(self) -> list[tf.Variable]:
        """The variables whose gradients come, in their order; those that are no more are left out."""
        return [found for source in self._sources if (found := source()) is not None]

    @property
    def applied(self) -> int:
        """How many updates there have been."""
        return int(self.accumulation.updates.numpy())

    @property
    def windows(self) -> int:
        """How many windows have been reduced."""
        return int(self.accumulation.windows.numpy())

    @property
    def compared_windows(self) -> int:
        """In how many windows, the first ones, all ranks must take part."""
        return 2 if self.compare_values_at_second_window else 1

    @property
    def over_all_ranks(self) -> bool:
        """Whether no group of ranks has gradients of its own."""
        return self._reach.process_set is hvd.global_process_set

    def catch_up(self, root_rank: int) -> None:
        """Take over from a rank what all that took part in its updates know of compression."""
        known = [state[name] for state, name in known_to_all(self.driver.states)]
        broadcast_variables([self.accumulation.updates, self.accumulation.windows, *known], root_rank)

    def _flats(self, gradients: _Gradients, own: tf.Tensor) -> list[tf.Tensor]:
        scale = tf.convert_to_tensor(self.settings.scale(self.driver.ops.ranks, own), tf.float64)
        found = {
            p.name: [tf.zeros(p.shape, p.dtype) if g is None else g]
            for p, g in zip(self._parameters, gradients, strict=True)
        }
        flats = [bucket.pack(found) for bucket in self.buckets]
        # The mean of no samples is NaN, and counts nothing.
        return [tf.math.multiply_no_nan(flat, tf.cast(scale, flat.dtype)) for flat in flats]

    def _reduce(self, gradients: _Gradients, flats: Sequence[tf.Tensor], own: tf.Tensor) -> _Gradients:
        if self.compare_values_at_second_window:
            # The first may come before the broadcast, as in Horovod's own examples.
            name = f"{self.prefix}values"
            second = tf.equal(self.accumulation.windows, 1)
            shared = [source for source in self.sources if not self._reach.is_local(source)]
            values, among = [*self.compared_besides, *shared], self._reach.process_set
            compared = tf.cond(second, lambda: check_values(values, name, among), lambda: tf.constant(0))
            with tf.control_dependencies([compared]):
                own, flats = tf.identity(own), [tf.identity(flat) for flat in flats]
        self.accumulation.windows.assign_add(1)
        if self.settings.by_samples:
            scale = self.accumulation.scale_by_samples(own)
            flats = [flat * tf.cast(scale, flat.dtype) for flat in flats]
        elif self.tells_of_requests:
            self.accumulation.sum_with_told()
        reduced = self._clip_and_commit(*self._sum(flats))
        parts = {
            weight.name: part
            for bucket, flat in zip(self.buckets, reduced, strict=True)
            for weight, part in zip(bucket.layout.weights, tf.split(flat, bucket.layout.sizes), strict=True)
        }
        return [
            None if g is None else tf.cast(tf.reshape(parts[p.name], p.shape), p.dtype)
            for p, g in zip(self._parameters, gradients, strict=True)
        ]

    def _sum(self, flats: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], dict[int, State]]:
        """The buckets summed over ranks, and the policies' new states."""
        update = self.accumulation.updates + 1

        def branch(rules: Rules) -> Callable[[], tuple[list[tf.Tensor], dict[int, State]]]:
            def drive() -> tuple[list[tf.Tensor], dict[int, State]]:
                sums, states = self.driver.reduce(rules.policy, flats[: self._sent], update)
                return [*sums, *map(self._own, flats[self._sent :])], states

            return drive

        # A traced step is for all updates: where the policy changes with their number, the graph chooses.
        starts, rules = zip(*self.settings.rules.stages(), strict=True)
        if len(rules) == 1:
            return branch(rules[0])()
        stage = tf.reduce_sum(tf.cast(update >= tf.constant(starts, tf.int64), tf.int32)) - 1
        return tf.switch_case(stage, [branch(each) for each in rules])

    def _own(self, flat: tf.Tensor) -> tf.Tensor:
        """A bucket of local variables, that this rank's share of the loss has been divided for already."""
        divided = self.settings.average in ("mean", "ranks")
        return flat if self._reach.scale_local_gradients or not divided else flat * self.driver.ops.ranks

    def _clip_and_commit(self, reduced: list[tf.Tensor], states: dict[int, State]) -> list[tf.Tensor]:
        limit = self.settings.max_grad_norm
        if limit is None and not any(states.values()):
            self.accumulation.updates.assign_add(1)
            return reduced
        squares = tf.add_n([tf.cast(2.0 * tf.nn.l2_loss(flat), tf.float64) for flat in reduced[: self._sent]])
        norm = tf.sqrt(squares)

        def commit() -> None:
            self.accumulation.updates.assign_add(1)
            self.driver.commit(states)

        # What is not finite is never applied by a loss scale, and nothing of it may stay behind.
        tf.cond(tf.math.is_finite(norm), commit, lambda: None)
        if limit is None:
            return reduced
        factor = clip_factor(norm, limit, tf.minimum)
        return [flat * tf.cast(factor, flat.dtype) for flat in reduced]


def _as_matrix(parameter: Parameter) -> Parameter:
    # A convolution's kernel is (height, width, in, out): to a policy of matrices, a map of its last axis.
    *first, last = parameter.shape or (1,)
    return replace(parameter, shape=(math.prod(first), last)) if len(first) > 1 else parameter


def gradients_in_use() -> list[Gradients]:
    """Those of all distributed optimizers and tapes that have taken a step."""
    return sorted(_live, key=lambda each: each.prefix)
