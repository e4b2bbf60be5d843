"""Flat gradient buckets: which weights share a collective, and where each lies (as DDP's, Li et al. 2020)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from hvdtrain.core.families.weights import Weight


@dataclass(frozen=True)
class Bucket:
    """One flat array of gradients, reduced by one collective.

    Attributes:
        index: position in the order in which buckets close during backward.
        weights: the members in the order they lie in the array; those that decay come first, so that
            optimizers find few slices of weights to be updated alike.
        touched_rows: of a bucket that holds one lookup table, how many rows of its gradient may differ from
            zero on a rank, where sending those alone is fewer bytes; else None.
    """

    index: int
    weights: tuple[Weight, ...]
    touched_rows: int | None = None

    @property
    def size(self) -> int:
        """Elements in the bucket."""
        return sum(w.size for w in self.weights)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each member."""
        return tuple(w.size for w in self.weights)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each member in the Hugging Face layout."""
        return tuple(w.shape for w in self.weights)


def plan_buckets(
    weights: Sequence[Weight],
    itemsize: int,
    cap_bytes: float,
    group: Callable[[Weight], Hashable] = lambda weight: 0,
    touched_rows: Callable[[Weight], int | None] = lambda weight: None,
    by_layer: bool = False,
) -> tuple[Bucket, ...]:
    """Fill buckets in reverse order of the forward pass, the order in which backward finishes gradients.

    Embeddings and layers never share one: the layers' gradients would wait for the very end of backward. The
    layers that backward reaches last have a small one: nothing is left to compute while it travels.

    Args:
        weights: the model's weights in the order of the forward pass.
        itemsize: bytes of one gradient element.
        cap_bytes: a bucket closes before it would exceed this, the last one of layers a quarter of this; a
            larger weight has a bucket of its own.
        group: of a weight; weights of different groups never share a bucket.
        touched_rows: of a weight whose gradient travels by rows; it has a bucket of its own.
        by_layer: whether layers never share a bucket either, nor a tied embedding with others.

    Returns:
        Buckets in closing order; every weight is in exactly one.
    """
    closed: list[list[Weight]] = []
    filling: dict[tuple[bool, Hashable, Hashable], list[Weight]] = {}
    filled: Counter[Hashable] = Counter()
    for weight in reversed(weights):
        if touched_rows(weight) is not None:
            closed.append([weight])
            continue
        layer = (weight.layer, weight.tied) if by_layer else None
        kind = weight.embedding, group(weight), layer
        members = filling.pop(kind, [])
        if members and (filled[kind] + weight.size) * itemsize > cap_bytes:
            closed.append(members)
            members, filled[kind] = [], 0
        members.append(weight)
        filling[kind] = members
        filled[kind] += weight.size
    for (embedding, *_), members in filling.items():
        whole = embedding or by_layer
        closed += [members] if whole else _last_apart(members, cap_bytes / 4 / itemsize)
    place = {weight.name: i for i, weight in enumerate(weights)}
    closed.sort(key=lambda members: -place[members[-1].name])
    return tuple(
        Bucket(i, tuple(sorted(m, key=lambda w: not w.decays)), touched_rows(m[0]))
        for i, m in enumerate(closed)
    )


def _last_apart(members: list[Weight], most: float) -> list[list[Weight]]:
    """A bucket cut in two, the second of which has no more elements than this, or one weight."""
    late = max(1, sum(size <= most for size in accumulate(w.size for w in reversed(members))))
    return [part for part in (members[:-late], members[-late:]) if part]
