"""Gradients of a user's own training step: added up, and summed over ranks inside that step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.compression.protocol import State
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.dropin import Parameter, Settings, accumulator, lay_out
from hvdtrain.core.update.optimizers import clip_factor
from hvdtrain.tensorflow.driver import Driver, pack, variables
from hvdtrain.tensorflow.dropin.agreement import check_structure, check_values, parameters_of
from hvdtrain.tensorflow.dropin.arguments import Reach
from hvdtrain.tensorflow.dropin.keeping import Kept
from hvdtrain.tensorflow.ops import Ops
from hvdtrain.tensorflow.world import reduces_over_mpi

_Gradients = Sequence[tf.Tensor | None]
_ALL = Reach()


_live: weakref.WeakSet[Gradients] = weakref.WeakSet()


class Gradients(Kept):
    """Sums the gradients of a list of variables over ranks, a window of micro-batches at a time.

    `micro_batch` is called while TensorFlow traces, or eagerly. Ranks must have made the same objects in the
    same order.
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
        ranks = self._ranks = reach.process_set.size()
        # Weak: what is known of a tape's model must not keep the model.
        self._sources = [weakref.ref(source) for source in sources]
        self._parameters = parameters_of(sources)
        kinds = [reach.is_local(source) for source in sources]
        shared = [p for p, is_local in zip(self._parameters, kinds, strict=True) if not is_local]
        local = [p for p, is_local in zip(self._parameters, kinds, strict=True) if is_local]
        check_structure(shared, settings, options, reach.process_set)
        rules = settings.rules
        rules.check([p.name for p in self._parameters])
        rules.check_ranks(ranks, reduces_over_mpi())
        self.buckets = lay_out([_as_matrix(p) for p in shared], settings)
        # The buckets from here on are not sent.
        self._sent = len(self.buckets)
        self.buckets += lay_out([_as_matrix(p) for p in local], settings, first=self._sent)
        ops = Ops(ranks, reach.process_set.rank(), seed=0)
        with tf.init_scope():
            self._driver = Driver(ops, prefix, _counter(), reach.process_set)
            # Updates applied, micro-batches and windows so far.
            self._updates, self._micro, self._windows = _counter(), _counter(), _counter()
            self._samples = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            dtypes = {p.name: accumulator(p) for p in self._parameters}
            self._dtypes = [dtypes[bucket.weights[0].name] for bucket in self.buckets]
            self._states = [
                variables(rules.policy(b).init(ops, b, dtype)) if b.index < self._sent else {}
                for b, dtype in zip(self.buckets, self._dtypes, strict=True)
            ]
            self._totals = [
                tf.Variable(tf.zeros((b.size,), dtype), trainable=False)
                for b, dtype in zip(self.buckets, self._dtypes, strict=True)
                if settings.gradient_accumulation_steps > 1
            ]
        _live.add(self)
        # Whether the sources, and what else, are compared when the second window begins.
        self.compare_values_at_second_window = True
        self.compared_besides: list[tf.Variable] = []

    def micro_batch(
        self, gradients: _Gradients, samples: tf.Tensor | None, then: Callable[[_Gradients], None]
    ) -> None:
        """Add one micro-batch's gradients to the window; when it is full, reduce it and go on.

        Args:
            gradients: of the sources, in their order, without loss scale; None where there is none.
            samples: how many the micro-batch has, an integer scalar, where the settings go by samples.
            then: takes the window's gradients, reduced and clipped, None where it was None.
        """
        steps = self.settings.gradient_accumulation_steps
        own = tf.cast(samples, tf.float64) if self.settings.by_samples else tf.constant(1.0, tf.float64)
        flats = self._flats(gradients, own)
        if steps == 1:
            then(self._reduce(gradients, flats, own))
            return

        def last() -> None:
            whole = [total + flat for total, flat in zip(self._totals, flats, strict=True)]
            then(self._reduce(gradients, whole, self._samples + own))
            for total in (*self._totals, self._samples, self._micro):
                total.assign(tf.zeros_like(total))

        def early() -> None:
            for total, flat in zip((*self._totals, self._samples), (*flats, own), strict=True):
                total.assign_add(flat)
            self._micro.assign_add(1)

        tf.cond(tf.equal(self._micro, steps - 1), last, early)

    @property
    def sources(self) -> list[tf.Variable]:
        """The variables whose gradients come, in their order; those that are no more are left out."""
        return [found for source in self._sources if (found := source()) is not None]

    @property
    def compared_windows(self) -> int:
        """In how many windows, the first ones, all ranks must take part."""
        return 2 if self.compare_values_at_second_window else 1

    @property
    def over_all_ranks(self) -> bool:
        """Whether no group of ranks has gradients of its own."""
        return self._reach.process_set is hvd.global_process_set

    def _flats(self, gradients: _Gradients, own: tf.Tensor) -> list[tf.Tensor]:
        scale = tf.convert_to_tensor(self.settings.scale(self._ranks, own), tf.float64)
        found = {
            p.name: [tf.zeros(p.shape, p.dtype) if g is None else g]
            for p, g in zip(self._parameters, gradients, strict=True)
        }
        flats = []
        for bucket, dtype in zip(self.buckets, self._dtypes, strict=True):
            flat = tf.cast(pack(bucket, found), dtype)
            # The mean of no samples is NaN, and counts nothing.
            flats.append(tf.math.multiply_no_nan(flat, tf.cast(scale, dtype)))
        return flats

    def _reduce(self, gradients: _Gradients, flats: list[tf.Tensor], own: tf.Tensor) -> _Gradients:
        if self.compare_values_at_second_window:
            # The first may come before the broadcast, as in Horovod's own examples.
            name = f"{self._driver.prefix}values"
            second = tf.equal(self._windows, 1)
            shared = [source for source in self.sources if not self._reach.is_local(source)]
            values, among = [*self.compared_besides, *shared], self._reach.process_set
            compared = tf.cond(second, lambda: check_values(values, name, among), lambda: tf.constant(0))
            with tf.control_dependencies([compared]):
                own, flats = tf.identity(own), [tf.identity(flat) for flat in flats]
        self._windows.assign_add(1)
        if self.settings.by_samples:
            scale = self._closing_scale(own)
            flats = [flat * tf.cast(scale, flat.dtype) for flat in flats]
        reduced = self._clip_and_commit(*self._sum(flats))
        parts = {
            weight.name: part
            for bucket, flat in zip(self.buckets, reduced, strict=True)
            for weight, part in zip(bucket.weights, tf.split(flat, bucket.sizes), strict=True)
        }
        return [
            None if g is None else tf.cast(tf.reshape(parts[p.name], p.shape), p.dtype)
            for p, g in zip(self._parameters, gradients, strict=True)
        ]

    def _closing_scale(self, own: tf.Tensor) -> tf.Tensor:
        name = f"{self._driver.prefix}samples"
        mine = self._driver.not_constant(tf.reshape(own, [1]))
        among = {"process_set": self._reach.process_set, "ignore_name_scope": True}
        total = tf.reshape(hvd.allreduce(mine, op=hvd.Sum, name=name, **among), [])
        steps = self.settings.gradient_accumulation_steps

        def scale(mine: np.ndarray, every: np.ndarray) -> np.ndarray:
            return np.array(self.settings.closing_scale(steps, float(mine), float(every)))

        return tf.ensure_shape(tf.numpy_function(scale, [own, total], tf.float64, stateful=False), ())

    def _sum(self, flats: list[tf.Tensor]) -> tuple[list[tf.Tensor], list[State]]:
        """The buckets summed over ranks, and the policies' new states."""
        before = [{n: tf.convert_to_tensor(v) for n, v in state.items()} for state in self._states]
        update = self._updates + 1

        def branch(rules: Rules) -> Callable[[], tuple[list[tf.Tensor], list[State]]]:
            def drive() -> tuple[list[tf.Tensor], list[State]]:
                work = zip(self.buckets, flats, before, strict=True)
                found = [
                    self._driver.reduce(rules.policy(b), b, f, s, update)
                    if b.index < self._sent
                    else (self._own(f), s)
                    for b, f, s in work
                ]
                return [total for total, _ in found], [dict(state) for _, state in found]

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
        return flat if self._reach.scale_local_gradients or not divided else flat * self._ranks

    def _clip_and_commit(self, reduced: list[tf.Tensor], states: list[State]) -> list[tf.Tensor]:
        limit = self.settings.max_grad_norm
        if limit is None and not any(self._states):
            self._updates.assign_add(1)
            return reduced
        squares = tf.add_n([tf.cast(2.0 * tf.nn.l2_loss(flat), tf.float64) for flat in reduced[: self._sent]])
        norm = tf.sqrt(squares)

        def commit() -> None:
            self._updates.assign_add(1)
            for variables_, found in zip(self._states, states, strict=True):
                for name, variable in variables_.items():
                    variable.assign(found[name])

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


def _counter() -> tf.Variable:
    return tf.Variable(0, dtype=tf.int64, trainable=False)
