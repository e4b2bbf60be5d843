"""Batch norm over the real rows of a micro-batch, of this rank or of all."""

from __future__ import annotations

from typing import Any

import horovod.torch as hvd
import torch

from hvdtrain.core.families.batch_norm import (
    Moments,
    at_least_one,
    inverse_deviation,
    is_recomputed,
    merge,
    moved,
)


def batch_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor, name: str | None
) -> tuple[torch.Tensor, Moments]:
    """Normalise each channel by its statistics, and scale and shift it.

    Args:
        x: (rows, channels, height, width).
        weight: the scale, (channels,).
        bias: (channels,).
        rows: 1 for each real row and 0 beyond the data, (rows,).
        name: of the layer, the same on all ranks and no other's: statistics are those of all ranks' rows,
            and each rank calls this equally often. None: they are this rank's own, and nothing is sent.

    Returns:
        The output, of x's shape and dtype, and the moments, float64, for `keep`.
    """
    output, *moments = _Normalize.apply(x, weight, bias, rows, name)
    return output, Moments(*moments)


def keep(mean: torch.Tensor, variance: torch.Tensor, moments: Moments) -> None:
    """Move the running statistics, unless this forward pass is a repeated one.

    Args:
        mean: the running one, (channels,); overwritten, as the variance.
        variance: the running one, (channels,).
        moments: of the micro-batch.
    """
    if not is_recomputed():
        found = moved(_KERNELS, mean.double(), variance.double(), moments)
        mean.copy_(found[0])
        variance.copy_(found[1])


class _Kernels:
    """See `Kernels` of `hvdtrain.core.families.batch_norm`."""

    def total(self, array: torch.Tensor) -> torch.Tensor:
        return array.sum(0)

    def where(self, condition: torch.Tensor, array: torch.Tensor, other: Any) -> torch.Tensor:
        return torch.where(condition, array, other)

    def isfinite(self, array: torch.Tensor) -> torch.Tensor:
        return array.isfinite()


_KERNELS = _Kernels()


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor, name: Any
    ) -> tuple[torch.Tensor, ...]:
        whole = x.to(weight.dtype)
        moments = _moments(whole, rows)
        if name is not None:
            moments = _of_all_ranks(moments, name)
        mean, inverse = (t.to(weight) for t in (moments.mean, inverse_deviation(_KERNELS, moments)))
        # A row beyond the data becomes the bias: by others' statistics it might grow from layer to layer.
        scale = _channels(inverse * weight) * rows.to(weight)[:, None, None, None]
        output = torch.addcmul(_channels(bias), whole - _channels(mean), scale)
        context.save_for_backward(x, weight, rows, mean, inverse, moments.count)
        context.name = name
        context.mark_non_differentiable(*moments)
        return output.to(x.dtype), *moments

    @staticmethod
    def backward(context: Any, upstream: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, rows, mean, inverse, count = context.saved_tensors
        gradient = upstream.to(weight.dtype)
        normal = (x.to(weight.dtype) - _channels(mean)) * _channels(inverse)
        # Of the loss with respect to bias and weight: this rank's own, which the buckets sum over ranks.
        own = torch.stack([gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))])
        sums = own
        if context.name is not None:
            sums = hvd.allreduce(own, op=hvd.Sum, name=f"{context.name}.backward")
        count = at_least_one(_KERNELS, count).to(own)
        through_mean, through_variance = (_channels(each) for each in sums / count)
        # A row beyond the data has no part in mean and variance.
        shared = torch.addcmul(through_mean, normal, through_variance) * rows.to(own)[:, None, None, None]
        found = (gradient - shared) * _channels(inverse * weight)
        return found.to(x.dtype), own[1], own[0], None, None


def _moments(x: torch.Tensor, rows: torch.Tensor) -> Moments:
    """Of each channel of this rank's real rows."""
    counts = rows.double()[:, None] * (x.shape[2] * x.shape[3])
    # Ten times as quick as PyTorch's var_mean.
    means = x.mean((2, 3), keepdim=True)
    variances = (x - means).square_().mean((2, 3)).double()
    return merge(_KERNELS, Moments(counts, means[:, :, 0, 0].double(), counts * variances))


def _of_all_ranks(moments: Moments, name: str) -> Moments:
    channels = len(moments.mean)
    every = hvd.allgather(torch.cat(moments)[None], name=f"{name}.forward")
    return merge(_KERNELS, Moments(*every.split([1, channels, channels], dim=1)))


def _channels(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None]
