"""Batch norm (Ioffe & Szegedy 2015, arXiv:1502.03167): what both frameworks compute, said once.

Mean and variance of a channel are those of all its values in a micro-batch's real rows. A row beyond the data
has a row weight of 0: it changes nothing, and is normalised to 0. Rows are normalised by the biased variance;
the running variance is PyTorch's unbiased one, with n - 1 in place of n.

Statistics travel as *moments*: of n values, their mean and the sum of their squared deviations from it. Those
of rows are merged to those of a rank, and with `sync_batch_norm` those of ranks to those of all, in order and
in float64: by sums of squares, what is small beside its mean would cancel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from hvdtrain.core.families.initializers import ONES, ZEROS
from hvdtrain.core.families.weights import Weight

# PyTorch's defaults, and those of ResNet.
EPSILON, MOMENTUM = 1e-5, 0.1
# Forward passes of this context have been counted before.
_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


class Kernels(Protocol):
    """What a framework computes for batch norm, beside arithmetic."""

    def total(self, array: Any) -> Any:
        """The sum over the first axis."""
        ...

    def where(self, condition: Any, array: Any, other: Any) -> Any:
        """Elements of one array, or of another."""
        ...

    def isfinite(self, array: Any) -> Any:
        """Booleans."""
        ...


class Moments(NamedTuple):
    """Of some values of each channel; also of several parts, which the first axis counts.

    Attributes:
        count: n, how many values of a channel there are, (..., 1).
        mean: 0 where there are none, (..., channels).
        spread: the sum of squared deviations from the mean, (..., channels).
    """

    count: Any
    mean: Any
    spread: Any


def merge(kernels: Kernels, parts: Moments) -> Moments:
    """The moments of all parts together (Chan, Golub & LeVeque 1983).

    Args:
        kernels: of a framework.
        parts: each (parts, ...); of those without values mean and spread are finite and have no effect.
    """
    count = kernels.total(parts.count)
    mean = kernels.total(parts.count * parts.mean) / at_least_one(kernels, count)
    return Moments(count, mean, kernels.total(parts.spread + parts.count * (parts.mean - mean) ** 2))


def inverse_deviation(kernels: Kernels, moments: Moments) -> Any:
    """What deviations from the mean are multiplied with: one over the root of variance plus epsilon."""
    return (moments.spread / at_least_one(kernels, moments.count) + EPSILON) ** -0.5


def moved(kernels: Kernels, mean: Any, variance: Any, moments: Moments) -> tuple[Any, Any]:
    """The running mean and variance after a micro-batch.

    They stay as they are where there is no unbiased variance, since n is 0 or 1, and where the micro-batch's
    are not finite: an update that is skipped for float16's sake would spoil them for good.

    Args:
        kernels: of a framework.
        mean: before, (channels,).
        variance: before, (channels,).
        moments: of the micro-batch.
    """
    unbiased = moments.spread / at_least_one(kernels, moments.count - 1.0)
    known = (moments.count > 1.0) & kernels.isfinite(moments.mean) & kernels.isfinite(unbiased)
    found = ((mean, moments.mean), (variance, unbiased))
    after = [kernels.where(known, (1.0 - MOMENTUM) * old + MOMENTUM * new, old) for old, new in found]
    return after[0], after[1]


def at_least_one(kernels: Kernels, count: Any) -> Any:
    """A count to divide by."""
    return kernels.where(count > 0.0, count, 1.0)


def layer_weights(name: str, channels: int) -> list[Weight]:
    """What a batch norm has: weight and bias, which do not decay, and two buffers.

    Args:
        name: of the layer.
        channels: elements of each.
    """
    found = {"weight": ONES, "bias": ZEROS, "running_mean": ZEROS, "running_var": ONES}
    return [
        Weight(f"{name}.{leaf}", (channels,), False, initial, buffer=leaf.startswith("running"))
        for leaf, initial in found.items()
    ]


@contextmanager
def recomputing() -> Iterator[None]:
    """Within it, forward passes are repeated for a backward pass: running statistics stay as they are."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


def is_recomputed() -> bool:
    """Whether a forward pass is repeated."""
    return _recomputing.get()
