"""One update and one evaluation batch in PyTorch; the loop around them is the core's."""

from __future__ import annotations

import math
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from hvdtrain.core.compression import Policy
from hvdtrain.core.data import Batch, Window
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import FAMILIES, custom
from hvdtrain.core.families.weights import Weight, trained
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.requests import NO_REQUESTS, Requests
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.optimizers import clip_factor
from hvdtrain.core.update.precision import compute_dtype
from hvdtrain.torch.flat_weights import FlatWeights, HeldWeights
from hvdtrain.torch.gathers import GatheredWeights
from hvdtrain.torch.generators import Generators
from hvdtrain.torch.model import Model
from hvdtrain.torch.optimizers import Optimizer
from hvdtrain.torch.reducer import Reducer
from hvdtrain.torch.shards import ShardExchange


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
    # Families of other packages fill the weights that they make.
    empty = spec.rules.shards_weights and spec.model.model_type in FAMILIES.builtin
    model = Model(spec.model, weights, compute_dtype(spec), network, spec.task, empty)
    if spec.gradient_checkpointing:
        model.network.gradient_checkpointing_enable()
    return Trainer(spec, plan, model)


class Trainer:
    """Computes a job's updates in PyTorch; the core's loop holds it as its `Adapter`.

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
        parameters = {w.name: model.parameters[w.name] for w in trained(model.weights)}
        rules = spec.rules
        shards = [rules.shard(bucket, hvd.size(), hvd.rank()) for bucket in plan.buckets]
        exchange = ShardExchange() if rules.sharded else None
        module = getattr(model.network, "module", None)
        self._weights: HeldWeights
        if exchange is not None and rules.shards_weights:
            self._weights = GatheredWeights(rules, shards, parameters, exchange, _whole(module, spec))
        else:
            # A user's module may use the parameters of another one, whose forward pass nobody calls.
            own = None if isinstance(spec.model, custom.ModelSpec) else module
            self._weights = FlatWeights(rules, shards, parameters, exchange, own)
        model.held = self._weights
        self.optimizer = Optimizer(spec.optimizer, shards, self._weights, exchange)
        self.generators = Generators(model.network)
        scaled = spec.mixed_precision == "fp16"
        self.reducer = Reducer(rules, plan.buckets, parameters, spec.seed, scaled)

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
        loss_sum, weight = self._accumulate(window, divisor, update, loss_scale)
        own = [loss_sum, weight, next_weight, window.tokens, *requests]
        sums = torch.tensor(own, dtype=torch.float64)
        handle = hvd.allreduce_async_(sums, op=hvd.Sum, name="update")
        gradients = self.reducer.finish()
        total, weight, next_divisor, tokens, *asked = hvd.synchronize(handle).tolist()
        norm, finite = self._apply(gradients, self._correction(divisor, weight), learning_rate, update)
        return UpdateResult(total, norm, finite, next_divisor, int(tokens), weight, Requests(*asked))

    def local_update(
        self, window: Window, divisor: float, learning_rate: float, update: int, loss_scale: float
    ) -> UpdateResult:
        """One update of this rank alone; see `Adapter.local_update`."""
        loss_sum, weight = self._accumulate(window, divisor, update, loss_scale)
        gradients = self.reducer.finish()
        norm, finite = self._apply(gradients, self._correction(divisor, weight), learning_rate, update)
        return UpdateResult(loss_sum, norm, finite, 0.0, window.tokens, weight)

    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        """Whether the loss and each gradient is not finite; see `Adapter.find_nonfinite`."""
        weights = [self.model.parameters[w.name] for w in reversed(trained(self.model.weights))]
        found = np.zeros(1 + len(weights), bool)
        for batch in window.micro_batches:
            loss = self.model.loss_sum(self.model.tensors(batch), training=True) / divisor
            gradients = torch.autograd.grad(loss * loss_scale, weights, allow_unused=True)
            arrays = (loss, *gradients)
            found |= np.array([a is not None and not torch.isfinite(a.to_dense()).all() for a in arrays])
        return found

    def exchange(self, policy: Policy) -> None:
        """Replace the weights by what ranks agree on; see `Adapter.exchange`."""
        assert isinstance(self._weights, FlatWeights)
        self._weights.replace(self.reducer.exchange(policy, self._weights.own))

    def start_exchange(self, policy: Policy) -> None:
        """Ask the other ranks while updates go on; see `Adapter.start_exchange`."""
        self.reducer.start_exchange(policy, self._weights.own)

    def finish_exchange(self) -> None:
        """Wait for the other ranks; see `Adapter.finish_exchange`."""
        self.reducer.finish_exchange()

    def evaluate(self, batch: Batch) -> np.ndarray:
        """What an evaluation sums up over one batch; see `Adapter.evaluate`."""
        found = self.model.evaluate(self.model.tensors(batch)).double().cpu().numpy()
        return found if self.model.weighs else np.concatenate([found[:1], [batch.weight], found[2:]])

    def predict(self, batch: Batch) -> np.ndarray:
        """The logits of one batch; see `Adapter.predict`."""
        return self.model.predict(self.model.tensors(batch)).cpu().numpy()

    def examine(self, batch: Batch) -> np.ndarray:
        """The loss of one batch; see `Adapter.examine`."""
        return self.model.examine(self.model.tensors(batch))

    def unused(self, batch: Batch) -> list[str]:
        """The names of weights without a gradient; see `Adapter.unused`."""
        return self.model.unused(self.model.tensors(batch))

    def _accumulate(
        self, window: Window, divisor: float, update: int, loss_scale: float
    ) -> tuple[float, float]:
        """The summed loss of this rank's window, and its weight."""
        self.reducer.start_window(update, loss_scale)
        *early, last = [self.model.tensors(batch) for batch in window.micro_batches]
        weights: list[torch.Tensor | None] = []
        losses = [self._backward(batch, 1.0 / divisor, weights, last=False) for batch in early]
        losses.append(self._backward(last, 1.0 / divisor, weights, last=True))
        loss_sum = float(torch.stack(losses).sum()) * divisor
        found = sum(float(weight) for weight in weights if weight is not None)
        return loss_sum, found if self.model.weighs else window.weight

    def _backward(
        self,
        batch: dict[str, torch.Tensor],
        inverse: float,
        weights: list[torch.Tensor | None],
        last: bool,
    ) -> torch.Tensor:
        def forward() -> torch.Tensor:
            loss, weight = self.model.weighted_loss(batch, training=True)
            weights.append(weight)
            return loss * inverse

        return self.reducer.backward(forward, last).double()

    def _correction(self, divisor: float, weight: float) -> float | None:
        """What gradients are multiplied with whose divisor was not the weight that the loss has found."""
        if not self.model.weighs:
            return None
        return divisor / weight if weight else math.nan

    def _apply(
        self, gradients: list[torch.Tensor], correction: float | None, learning_rate: float, update: int
    ) -> tuple[float, bool]:
        if correction is not None:
            for gradient in gradients:
                gradient.mul_(correction)
        norm = self.optimizer.norm(gradients)
        finite = bool(torch.isfinite(norm))
        if finite:
            self._clip(gradients, norm)
            self.optimizer.apply(gradients, learning_rate, update)
            self.reducer.commit()
        return float(norm), finite

    def _clip(self, gradients: list[torch.Tensor], norm: torch.Tensor) -> None:
        if self._spec.max_grad_norm is not None:
            factor = clip_factor(norm, self._spec.max_grad_norm, torch.clamp_max)
            # A pass over every gradient, not worth it for a factor of 1; norm has been waited for already.
            if factor < 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)


def _whole(module: torch.nn.Module | None, spec: JobSpec) -> torch.nn.Module:
    if module is None:
        raise SpecError(
            f"zero_stage: {spec.zero_stage} gathers weights for the modules that use them, and the Network "
            f"of model_type {spec.model.model_type} has no attribute `module`, the torch.nn.Module that has "
            "them: add it, or choose zero_stage: 2"
        )
    return module
