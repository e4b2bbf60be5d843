"""One update and one evaluation batch in PyTorch; the loop around them is the core's."""

from __future__ import annotations

import horovod.torch as hvd
import numpy as np
import torch

from hvdtrain.core.compression import Policy
from hvdtrain.core.data import Batch, Window
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.training import BaseTrainer
from hvdtrain.core.update.optimizers import clip_factor
from hvdtrain.core.update.precision import compute_dtype
from hvdtrain.torch import world
from hvdtrain.torch.model import Model, tensors
from hvdtrain.torch.optimizers import Optimizer
from hvdtrain.torch.reducer import Reducer


class Trainer(BaseTrainer):
    """Trains a job spec in PyTorch."""

    def _build(self) -> None:
        self._model = Model(self.spec.model, self.weights, compute_dtype(self.spec))
        self._optimizer = Optimizer(self.spec.optimizer, self.plan.buckets, self._model.parameters)
        scaled = self.spec.mixed_precision == "fp16"
        self._reducer = Reducer(
            self.spec.rules, self.plan.buckets, self._model.parameters, self.spec.seed, scaled
        )

    def update(
        self,
        window: Window,
        divisor: float,
        next_weight: float,
        learning_rate: float,
        update: int,
        loss_scale: float,
    ) -> UpdateResult:
        """One update; see `BaseTrainer.update`."""
        loss_sum = self._accumulate(window, divisor, update, loss_scale)
        sums = torch.tensor([loss_sum, next_weight, window.tokens], dtype=torch.float64)
        handle = hvd.allreduce_async_(sums, op=hvd.Sum, name="update")
        norm, finite = self._apply(learning_rate, update)
        total, next_divisor, tokens = hvd.synchronize(handle).tolist()
        return UpdateResult(total, norm, finite, next_divisor, int(tokens))

    def local_update(
        self, window: Window, divisor: float, learning_rate: float, update: int, loss_scale: float
    ) -> UpdateResult:
        """One update of this rank alone; see `BaseTrainer.local_update`."""
        loss_sum = self._accumulate(window, divisor, update, loss_scale)
        norm, finite = self._apply(learning_rate, update)
        return UpdateResult(loss_sum, norm, finite, 0.0, window.tokens)

    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        """Whether the loss and each gradient is not finite; see `BaseTrainer.find_nonfinite`."""
        weights = [self._model.parameters[w.name] for w in reversed(self.weights)]
        found = np.zeros(1 + len(weights), bool)
        for batch in window.micro_batches:
            loss = self._model.loss_sum(tensors(batch), training=True) / divisor
            gradients = torch.autograd.grad(loss * loss_scale, weights)
            found |= np.array([not torch.isfinite(array).all() for array in (loss, *gradients)])
        return found

    def exchange(self, policy: Policy) -> None:
        """Replace the weights by what ranks agree on; see `BaseTrainer.exchange`."""
        weights = self._reducer.exchange(policy, self._optimizer.read_weights())
        self._optimizer.write_weights(weights)

    def start_exchange(self, policy: Policy) -> None:
        """Ask the other ranks while updates go on; see `BaseTrainer.start_exchange`."""
        self._reducer.start_exchange(policy, self._optimizer.read_weights())

    def finish_exchange(self) -> None:
        """Wait for the other ranks; see `BaseTrainer.finish_exchange`."""
        self._reducer.finish_exchange()

    def loss_sum(self, batch: Batch) -> float:
        """The summed loss of one batch; see `BaseTrainer.loss_sum`."""
        return float(self._model.loss_sum(tensors(batch), training=False))

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        """Element-wise sum over all ranks."""
        return world.sum_over_ranks(values, "sum_over_ranks")

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """Rank 0's copy of a vector."""
        return world.broadcast(values, "broadcast")

    def _accumulate(self, window: Window, divisor: float, update: int, loss_scale: float) -> float:
        self._reducer.start_window(update, loss_scale)
        *early, last = [tensors(batch) for batch in window.micro_batches]
        losses = [self._backward(batch, 1.0 / divisor, last=False) for batch in early]
        losses.append(self._backward(last, 1.0 / divisor, last=True))
        return float(torch.stack(losses).sum()) * divisor

    def _backward(self, batch: dict[str, torch.Tensor], inverse: float, last: bool) -> torch.Tensor:
        loss = self._reducer.backward(lambda: self._model.loss_sum(batch, training=True) * inverse, last)
        return loss.double()

    def _apply(self, learning_rate: float, update: int) -> tuple[float, bool]:
        gradients = self._reducer.finish()
        norm = torch.stack([g.norm() for g in gradients]).norm()
        finite = bool(torch.isfinite(norm))
        if finite:
            self._clip(gradients, norm)
            self._optimizer.apply(gradients, learning_rate, update)
            self._reducer.commit()
        return float(norm), finite

    def _clip(self, gradients: list[torch.Tensor], norm: torch.Tensor) -> None:
        if self.spec.max_grad_norm is not None:
            factor = clip_factor(norm, self.spec.max_grad_norm, torch.clamp_max)
            # A pass over every gradient, not worth it for a factor of 1; norm has been waited for already.
            if factor < 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)
