"""One update and one evaluation batch in TensorFlow; the loop around them is the core's."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.compression import Policy
from hvdtrain.core.data import Batch, Window
from hvdtrain.core.families.weights import Weight, trained
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.requests import NO_REQUESTS, Requests
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.optimizers import clip_factor
from hvdtrain.core.update.precision import compute_dtype
from hvdtrain.tensorflow.families import network_of
from hvdtrain.tensorflow.flat_weights import FlatWeights
from hvdtrain.tensorflow.gathers import GatheredWeights
from hvdtrain.tensorflow.generators import Generators
from hvdtrain.tensorflow.model import Model, check_layers
from hvdtrain.tensorflow.optimizers import Optimizer
from hvdtrain.tensorflow.reducer import Reducer
from hvdtrain.tensorflow.shards import ShardExchange

_Batch = dict[str, tf.Tensor]
# No Python branch here hangs on a tensor: translating the code would take as long as tracing it.
_compiled = partial(tf.function, autograph=False)


def build_trainer(spec: JobSpec, plan: Plan, weights: tuple[Weight, ...], network: Any = None) -> Trainer:
    """Build this rank's trainer of the spec's model.

    Args:
        spec: the job.
        plan: made from the spec for these ranks.
        weights: the model's, in the order of the forward pass.
        network: a user's model, which has been built.

    Returns:
        The trainer; its weights are arbitrary until `model.write`.
    """
    check_layers(spec, network or network_of(spec.model))
    gathers = spec.rules.shards_weights
    model = Model(spec.model, weights, compute_dtype(spec), network, spec.task, empty=gathers)
    # A layer whose weights are gathered again is computed again anyway.
    if spec.gradient_checkpointing and not gathers:
        model.network.gradient_checkpointing_enable()
    return Trainer(spec, plan, model)


class Trainer:
    """Computes a job's updates in TensorFlow; the core's loop holds it as its `Adapter`.

    Attributes:
        model: the model.
        optimizer: updates the model's weights.
        reducer: sums gradients over ranks.
        generators: what dropout is drawn from.
    """

    def __init__(self, spec: JobSpec, plan: Plan, model: Model) -> None:
        """Build what trains a model.

        Args:
            spec: the job.
            plan: made from the spec for these ranks.
            model: the model to train.
        """
        self.model = model
        self._spec = spec
        self._dtype = tf.as_dtype(spec.model.dtype)
        parameters = {w.name: model.parameters[w.name] for w in trained(model.weights)}
        rules = spec.rules
        shards = [rules.shard(bucket, hvd.size(), hvd.rank()) for bucket in plan.buckets]
        if rules.shards_weights:
            held = rules, shards, spec.optimizer, parameters, ShardExchange()
            model.held = model.network.gathered = GatheredWeights(*held, model.network.variables)
        elif rules.sharded:
            model.held = FlatWeights(rules, shards, spec.optimizer, parameters, ShardExchange())
        self.optimizer = Optimizer(spec.optimizer, shards, parameters, model.held)
        self.generators = Generators(model.network)
        scaled = spec.mixed_precision == "fp16"
        self.reducer = Reducer(rules, plan.buckets, parameters, spec.seed, scaled)
        self._compiled_accumulate = _compiled(self._accumulate)
        self._compiled_finishes: dict[Hashable, tf.types.experimental.PolymorphicFunction] = {}
        self._compiled_exchanges: dict[Policy, tf.types.experimental.PolymorphicFunction] = {}
        self._compiled_evaluate = _compiled(self.model.evaluate)
        self._compiled_predict = _compiled(self.model.predict)

    def update(
        self,
        window: Window,
        divisor: float,
        next_weight: float,
        learning_rate: float,
        update: int,
        loss_scale: float,
        requests: Requests = NO_REQUESTS,
    ) -> UpdateResult:
        """One update; see `Adapter.update`."""
        last, inverse, sums = self._accumulate_early(window, divisor, update, loss_scale)
        others = tf.constant([next_weight, window.tokens, *requests], tf.float64)
        finish = self._compiled_finish(self._finish, update, window)
        sums, norm, finite = finish(
            last, inverse, sums, others, self._scalar(learning_rate), self._scalar(update)
        )
        total, weight, next_divisor, tokens, *asked = sums.numpy().tolist()
        requests = Requests(*asked)
        return UpdateResult(total, float(norm), bool(finite), next_divisor, int(tokens), weight, requests)

    def local_update(
        self, window: Window, divisor: float, learning_rate: float, update: int, loss_scale: float
    ) -> UpdateResult:
        """One update of this rank alone; see `Adapter.local_update`."""
        last, inverse, sums = self._accumulate_early(window, divisor, update, loss_scale)
        finish = self._compiled_finish(self._finish_alone, update, window)
        sums, norm, finite = finish(last, inverse, sums, self._scalar(learning_rate), self._scalar(update))
        loss_sum, weight = sums.numpy().tolist()
        return UpdateResult(loss_sum, float(norm), bool(finite), 0.0, window.tokens, weight)

    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        """Whether the loss and each gradient is not finite; see `Adapter.find_nonfinite`."""
        weights = [self.model.parameters[w.name] for w in reversed(trained(self.model.weights))]
        found = np.zeros(1 + len(weights), bool)
        for batch in window.micro_batches:
            with tf.GradientTape() as tape:
                loss = self.model.loss_sum(self.model.tensors(batch), training=True) / divisor
                scaled = loss * loss_scale
            gradients = tape.gradient(scaled, weights)
            parts = [[loss], *gradients]
            found |= [
                not all(np.isfinite(tf.convert_to_tensor(a)).all() for a in part if a is not None)
                for part in parts
            ]
        return found

    def exchange(self, policy: Policy) -> None:
        """Replace the weights by what ranks agree on; see `Adapter.exchange`."""
        if policy not in self._compiled_exchanges:
            self._compiled_exchanges[policy] = _compiled(lambda: self._exchange(policy))
        self._compiled_exchanges[policy]()

    def start_exchange(self, policy: Policy) -> None:
        """Ask the other ranks while updates go on; see `Adapter.start_exchange`."""
        self.reducer.start_exchange(policy, self.optimizer.read_weights())

    def finish_exchange(self) -> None:
        """Wait for the other ranks; see `Adapter.finish_exchange`."""
        self.reducer.finish_exchange()

    def evaluate(self, batch: Batch) -> np.ndarray:
        """What an evaluation sums up over one batch; see `Adapter.evaluate`."""
        found = self._compiled_evaluate(self.model.tensors(batch)).numpy().astype(np.float64)
        return found if self.model.weighs else np.concatenate([found[:1], [batch.weight], found[2:]])

    def predict(self, batch: Batch) -> np.ndarray:
        """The logits of one batch; see `Adapter.predict`."""
        return self._compiled_predict(self.model.tensors(batch)).numpy()

    def examine(self, batch: Batch) -> np.ndarray:
        """The loss of one batch; see `Adapter.examine`."""
        return self.model.examine(self.model.tensors(batch))

    def unused(self, batch: Batch) -> list[str]:
        """The names of weights without a gradient; see `Adapter.unused`."""
        return self.model.unused(self.model.tensors(batch))

    def _compiled_finish(
        self, finish: Callable[..., Any], update: int, window: Window
    ) -> tf.types.experimental.PolymorphicFunction:
        # Which collectives a graph holds, and whether there are totals, is fixed when it is traced.
        key = finish, self._spec.rules.at(update), len(window.micro_batches) > 1
        if key not in self._compiled_finishes:
            self._compiled_finishes[key] = _compiled(finish)
        return self._compiled_finishes[key]

    def _accumulate_early(
        self, window: Window, divisor: float, update: int, loss_scale: float
    ) -> tuple[_Batch, tf.Tensor, tf.Tensor]:
        *early, last = [self.model.tensors(batch) for batch in window.micro_batches]
        # The summed loss, and its weight: all of it, or what the loss function finds.
        inverse, known = self._scalar(1.0 / divisor), 0.0 if self.model.weighs else window.weight
        sums = tf.constant([0.0, known], tf.float64)
        self.reducer.start_window(update, loss_scale)
        if early:
            self.reducer.accumulate()
        for batch in early:
            sums += self._compiled_accumulate(batch, inverse)
        return last, inverse, sums

    def _accumulate(self, batch: _Batch, inverse: tf.Tensor) -> tf.Tensor:
        return self._backward(batch, inverse, last=False)

    def _finish(
        self,
        batch: _Batch,
        inverse: tf.Tensor,
        before: tf.Tensor,
        others: tf.Tensor,
        learning_rate: tf.Tensor,
        update: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        own = before + self._backward(batch, inverse, last=True)
        sums = hvd.allreduce(tf.concat([own, others], 0), op=hvd.Sum, name="update")
        return sums, *self._apply(inverse, sums[1], learning_rate, update)

    def _finish_alone(
        self,
        batch: _Batch,
        inverse: tf.Tensor,
        before: tf.Tensor,
        learning_rate: tf.Tensor,
        update: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        sums = before + self._backward(batch, inverse, last=True)
        return sums, *self._apply(inverse, sums[1], learning_rate, update)

    def _apply(
        self, inverse: tf.Tensor, weight: tf.Tensor, learning_rate: tf.Tensor, update: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        reduced = self.reducer.finish()
        if self.model.weighs:
            # The divisor was not the weight that the loss has found.
            correction = tf.cast(1.0 / (tf.cast(inverse, tf.float64) * weight), self._dtype)
            reduced = [gradient * correction for gradient in reduced]
        norm = self.optimizer.norm(reduced)
        finite = tf.math.is_finite(norm)

        def apply() -> bool:
            self.optimizer.apply(self._clip(reduced, norm), learning_rate, update)
            self.reducer.commit()
            return True

        tf.cond(finite, apply, lambda: False)
        return norm, finite

    def _exchange(self, policy: Policy) -> None:
        weights = self.reducer.exchange(policy, self.optimizer.read_weights())
        self.optimizer.write_weights(weights)

    def _backward(self, batch: _Batch, inverse: tf.Tensor, last: bool) -> tf.Tensor:
        weights: list[tf.Tensor | None] = []

        def forward() -> tf.Tensor:
            loss, weight = self.model.weighted_loss(batch, training=True)
            weights.append(weight)
            return loss * inverse

        loss = tf.cast(self.reducer.backward(forward, last), tf.float64) / tf.cast(inverse, tf.float64)
        (weight,) = weights
        return tf.stack([loss, tf.zeros_like(loss) if weight is None else tf.cast(weight, tf.float64)])

    def _clip(self, gradients: list[tf.Tensor], norm: tf.Tensor) -> list[tf.Tensor]:
        if self._spec.max_grad_norm is None:
            return gradients
        factor = clip_factor(norm, self._spec.max_grad_norm, tf.minimum)
        return [gradient * factor for gradient in gradients]

    def _scalar(self, value: float) -> tf.Tensor:
        return tf.constant(value, self._dtype)
