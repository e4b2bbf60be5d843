"""Batch normalisation whose statistics are those of the micro-batch of all ranks."""

from __future__ import annotations

import itertools
from typing import Any

import horovod.torch as hvd
import torch
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from hvdtrain.torch.dropin.session import require_init, waiting_for_ranks

_numbers = itertools.count()


class SyncBatchNorm(_BatchNorm):  # type: ignore[misc]
    """In place of `BatchNorm1d`, `2d` and `3d`, on CPUs as on GPUs; ranks may have different numbers of rows.

    In training, mean and variance are those of all ranks' rows together, and so are the running ones. The
    gradients of `weight` and `bias` stay each rank's own: `DistributedOptimizer` reduces them as all others.
    Every rank makes the same layers in the same order, and takes the same number of training steps, if need
    be with no rows.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        **others: Any,
    ) -> None:
        """Arguments as of PyTorch's `BatchNorm2d`.

        Args:
            num_features: C of inputs (N, C, ...).
            eps: added to the variance.
            momentum: of the running statistics; None: their mean over all steps.
            affine: whether there are `weight` and `bias`.
            track_running_stats: whether there are running statistics, which evaluation uses.
            **others: `device` and `dtype`.
        """
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **others)
        self._number = next(_numbers)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise a batch, (N, C, ...).

        Raises:
            ValueError: fewer than two dimensions, or one value a channel over all ranks.
        """
        self._check_input_dim(input)
        if not self.training and self.running_mean is not None:
            return functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        require_init("SyncBatchNorm")
        output, mean, variance, count = _Normalize.apply(
            input, self.weight, self.bias, self.eps, f"sync_batch_norm{self._number}"
        )
        if self.training and self.running_mean is not None and count:
            self._keep(mean, variance, float(count))
        return output

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    @torch.no_grad()
    def _keep(self, mean: torch.Tensor, variance: torch.Tensor, count: float) -> None:
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        unbiased = variance * (count / (count - 1.0))
        self.running_var.lerp_(unbiased.to(self.running_var), share)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, weight: Any, bias: Any, eps: float, name: str
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        rows = x.to(dtype)
        axes = [0, *range(2, x.dim())]
        count = rows.numel() // rows.shape[1]
        own = rows.sum(axes) / max(count, 1)
        spread = (rows - _channels(own, rows)).square().sum(axes)
        # A float64 counts rows exactly.
        mine = torch.cat(
            [torch.tensor([count], dtype=torch.float64, device=x.device), own.double(), spread.double()]
        )
        with waiting_for_ranks("batch normalisation"):
            every = hvd.allgather(mine[None], name=f"{name}.forward")
        counts, means, spreads = every.split([1, len(own), len(own)], dim=1)
        total = counts.sum()
        if total == 1:
            raise ValueError(
                f"expected more than 1 value per channel over all ranks, got input {tuple(x.shape)}"
            )
        # Of deviations from the mean, not of squares: those would cancel.
        mean = (counts * means).sum(0) / total.clamp(min=1.0)
        variance = (spreads + counts * (means - mean).square()).sum(0) / total.clamp(min=1.0)
        scale = torch.rsqrt(variance + eps).to(dtype)
        normal = (rows - _channels(mean.to(dtype), rows)) * _channels(scale, rows)
        context.save_for_backward(normal, scale, weight)
        context.total, context.name, context.dtypes = float(total), name, (x.dtype, dtype)
        context.has_bias = bias is not None
        output = normal if weight is None else normal * _channels(weight.to(dtype), rows)
        output = output if bias is None else output + _channels(bias.to(dtype), rows)
        context.mark_non_differentiable(mean, variance, total)
        return output.to(x.dtype), mean, variance, total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        normal, scale, weight = context.saved_tensors
        given, dtype = context.dtypes
        gradient = gradient.to(dtype)
        axes = [0, *range(2, gradient.dim())]
        sums, products = gradient.sum(axes), (gradient * normal).sum(axes)
        for_weight = None if weight is None else products.to(weight.dtype)
        for_bias = sums.to(weight.dtype if weight is not None else dtype) if context.has_bias else None
        if not context.needs_input_grad[0]:
            return None, for_weight, for_bias, None, None
        with waiting_for_ranks("batch normalisation"):
            both = hvd.allreduce(torch.cat([sums, products]), op=hvd.Sum, name=f"{context.name}.backward")
        sums, products = (_channels(each, gradient) for each in (both / max(context.total, 1.0)).chunk(2))
        factor = scale if weight is None else scale * weight.to(dtype)
        found = _channels(factor, gradient) * (gradient - sums - normal * products)
        return found.to(given), for_weight, for_bias, None, None


def _channels(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A value a channel, to be broadcast over (N, C, ...)."""
    return values.view(1, -1, *[1] * (like.dim() - 2))
