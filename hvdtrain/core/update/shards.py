"""Which part of each bucket a rank owns where optimizer state is sharded (ZeRO, Rajbhandari et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import numpy as np

from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.groups import Setting, setting_of

# Buckets that a rank has under way at a time, sums and updated weights alike: each takes memory of its own.
UNDER_WAY = 2


@dataclass(frozen=True)
class Piece:
    """Elements of a bucket that lie behind each other, are updated alike and belong to one rank.

    Attributes:
        setting: how they are updated.
        start: where the first lies in the bucket.
        parts: each weight that has some of them, and how many.
    """

    setting: Setting
    start: int
    parts: tuple[tuple[Weight, int], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each weight."""
        return tuple(count for _, count in self.parts)

    @property
    def size(self) -> int:
        """Elements in all."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Shard:
    """A rank's part of a bucket.

    Attributes:
        bucket: the layout of the whole.
        ranks: how many share it.
        rank: whose part this is.
        size: elements of every rank's part; that of the last ranks may reach beyond the bucket, into padding.
    """

    bucket: Bucket
    ranks: int
    rank: int
    size: int

    @classmethod
    def whole(cls, bucket: Bucket) -> Shard:
        """All of a bucket, which nobody else owns a part of."""
        return cls(bucket, 1, 0, bucket.size)

    @property
    def start(self) -> int:
        """Its first element in the bucket."""
        return self.rank * self.size

    @property
    def padded(self) -> int:
        """Elements of all parts together."""
        return self.ranks * self.size

    def part(self, name: str) -> tuple[slice, slice]:
        """Which elements of a weight are in it, and where they lie in it; both may be empty."""
        for weight, end in zip(self.bucket.weights, accumulate(self.bucket.sizes), strict=True):
            if weight.name == name:
                start = end - weight.size
                first = min(max(self.start, start), end)
                last = max(first, min(self.start + self.size, end))
                return slice(first - start, last - start), slice(first - self.start, last - self.start)
        raise KeyError(name)

    def pieces(self, spec: OptimizerSpec) -> list[Piece]:
        """The elements of the bucket in it, cut where the optimizer's setting changes, in their order."""
        ends = accumulate(self.bucket.sizes)
        parts = []
        for weight, end in zip(self.bucket.weights, ends, strict=True):
            first, last = max(self.start, end - weight.size), min(self.start + self.size, end)
            if first < last:
                parts.append((first, weight, last - first))
        runs = groupby(parts, lambda part: setting_of(spec, part[1]))
        found = []
        for setting, members in runs:
            (first, *_), *_ = run = list(members)
            found.append(Piece(setting, first, tuple((weight, count) for _, weight, count in run)))
        return found

    def take(self, moment: str, arrays: Iterator[tuple[str, np.ndarray]]) -> np.ndarray:
        """Copy this part of a moment from the next arrays of a stream, each of which is let go at once.

        Args:
            moment: such as `exp_avg`.
            arrays: with their names; the next are this moment of each weight of the bucket, in its order.

        Returns:
            (size,), with zeros in the padding.

        Raises:
            ValueError: the next array is another one.
        """
        found = np.zeros(0)
        for weight, end in zip(self.bucket.weights, accumulate(self.bucket.sizes), strict=True):
            name, array = next(arrays)
            if name != f"{weight.name}.{moment}":
                raise ValueError(f"expected {weight.name}.{moment}, found {name}")
            if not found.size:
                found = np.zeros(self.size, array.dtype)
            first, begin = max(self.start, end - weight.size), end - weight.size
            last = max(first, min(self.start + self.size, end))
            found[first - self.start : last - self.start] = array.reshape(-1)[first - begin : last - begin]
            del array
        return found


def scratch_elements(spec: OptimizerSpec, shards: Sequence[Shard]) -> int:
    """Elements that an optimizer keeps beside its moments.

    LAMB makes the step of one piece at a time and, where ranks share weights, of all, since their norms are
    summed over ranks at once.
    """
    if spec.type != "lamb":
        return 0
    sizes = [piece.size for shard in shards for piece in shard.pieces(spec)]
    return sum(sizes) if any(shard.ranks > 1 for shard in shards) else max(sizes, default=0)
