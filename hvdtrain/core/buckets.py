"""Flat gradient buckets: which weights share a collective, and where each lies (as DDP's, Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvdtrain.core.weights import Weight


@dataclass(frozen=True)
class Bucket:
    """One flat array of gradients, reduced by one collective.

    Attributes:
        index: position in the order in which buckets close during backward.
        weights: the members in the order they lie in the array; those that decay come first, so that
            each decay group is one contiguous slice.
    """

    index: int
    weights: tuple[Weight, ...]

    @property
    def size(self) -> int:
        """Elements in the bucket."""
        return sum(w.size for w in self.weights)

    @property
    def decay_size(self) -> int:
        """Elements at the front that weight decay applies to."""
        return sum(w.size for w in self.weights if w.decays)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each member."""
        return tuple(w.size for w in self.weights)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each member in the Hugging Face layout."""
        return tuple(w.shape for w in self.weights)


def plan_buckets(weights: Sequence[Weight], itemsize: int, cap_bytes: float) -> tuple[Bucket, ...]:
    """Fill buckets in reverse order of the forward pass, the order in which backward finishes gradients.

    Args:
        weights: the model's weights in the order of the forward pass.
        itemsize: bytes of one gradient element.
        cap_bytes: a bucket closes before it would exceed this; a larger weight has a bucket of its own.

    Returns:
        Buckets in closing order; every weight is in exactly one.
    """
    groups: list[list[Weight]] = []
    filled = 0
    for weight in reversed(weights):
        bytes_needed = weight.size * itemsize
        if not groups or filled + bytes_needed > cap_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(weight)
        filled += bytes_needed
    return tuple(
        Bucket(i, tuple(sorted(group, key=lambda w: not w.decays))) for i, group in enumerate(groups)
    )
