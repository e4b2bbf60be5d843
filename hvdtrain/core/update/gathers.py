"""When weights that ranks own shards of are gathered (ZeRO-3; FSDP: Zhao et al. 2023, arXiv:2304.11277)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from hvdtrain.core.update.buckets import Bucket


@dataclass(frozen=True)
class Gathers:
    """What a micro-batch gathers, in the order in which it uses it.

    Attributes:
        units: the buckets that are gathered and released together, by their index: those of one layer. A unit
            is called by its place here.
        forward: units of the forward pass. A tied embedding comes twice: before the first layer and in the
            head.
        held: what the forward pass used last. The backward pass uses it first, so it is not gathered again.
        backward: units of the backward pass. Tables of embeddings are not among them: no gradient is computed
            from their values.
    """

    units: tuple[tuple[int, ...], ...]
    forward: tuple[int, ...]
    held: int
    backward: tuple[int, ...]

    @property
    def buckets(self) -> tuple[int, ...]:
        """All gathers, by the index of the bucket."""
        return tuple(index for unit in (*self.forward, *self.backward) for index in self.units[unit])


def plan_gathers(buckets: Sequence[Bucket]) -> Gathers:
    """The gathers of a model whose modules use their weights in the order of the forward pass.

    Args:
        buckets: in closing order, none of them of several layers.
    """
    units = [[*members] for _, members in groupby(buckets, _layer)]
    numbers = range(len(units))
    tied = [unit for unit in numbers if any(w.tied for bucket in units[unit] for w in bucket.weights)]
    forward = (*reversed(numbers), *tied)
    tables = [unit for unit in numbers if all(w.table for bucket in units[unit] for w in bucket.weights)]
    backward = (unit for unit in numbers if unit != forward[-1] and unit not in tables)
    indices = tuple(tuple(bucket.index for bucket in unit) for unit in units)
    return Gathers(indices, forward, forward[-1], tuple(backward))


def _layer(bucket: Bucket) -> tuple[str, bool]:
    return bucket.weights[0].layer, bucket.weights[0].tied
