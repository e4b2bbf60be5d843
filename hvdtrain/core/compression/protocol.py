"""What a compression policy is: a pure algorithm that asks for collectives and calls no library of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from pydantic import Field

from hvdtrain.core.compression.verbs import Array, Ops
from hvdtrain.core.spec.sections import Section
from hvdtrain.core.update.buckets import Bucket

State: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class AllReduce:
    """Asks for the element-wise sum of `array` over all ranks; the driver may reuse its memory."""

    array: Array


@dataclass(frozen=True)
class AllGather:
    """Asks for every rank's `array`, shape (m,), as one array of shape (ranks, m) in the order of ranks."""

    array: Array


@dataclass(frozen=True)
class AllToAll:
    """Asks for row r of every rank's `array`, shape (ranks, m), where r is this rank: shape (ranks, m)."""

    array: Array


@dataclass(frozen=True)
class ReduceScatter:
    """Asks for the sum over all ranks of row r of `array`, shape (ranks, m), where r is this rank: (m,)."""

    array: Array


@dataclass(frozen=True)
class AdasumReduce:
    """Asks for all ranks' `array` combined by Adasum, each of its consecutive parts of `sizes` by itself.

    Adasum (Maleki et al. 2021, arXiv:2006.02924) adds what is orthogonal and averages what is parallel.
    """

    array: Array
    sizes: tuple[int, ...]


Request: TypeAlias = AllReduce | AllGather | AllToAll | ReduceScatter | AdasumReduce
Reduction: TypeAlias = Generator[Request, Array, tuple[Array, State]]


class Policy(Section, ABC):
    """How one bucket of gradients is summed over all ranks; its fields are the spec's `compression` section.

    Frozen, without I/O, and hashable. The fields say what holds at steady state.

    Attributes:
        type: how the spec calls it.
        match: names of the weights that travel by it, as a shell pattern (`*`, `?`, `[...]`).
        residuals: names of those state arrays whose sum over ranks is what matters: they differ by rank and
            keep their sum when the number of ranks changes.
        counters: names of those state scalars that count what a user should hear of.
        elementwise: whether the order of elements inside a weight makes no difference to the result.
        wire_types: dtypes it sends that Horovod as released does not, by NumPy's names.
        local: whether, at this update, ranks take updates of their own and hear nothing of each other.
        joins: whether zeros stand for a rank that takes no part any more (Horovod's `join`).
        whole: whether it is for all weights or none: it cannot share a job with other policies.
        own_mean: whether it combines gradients of each rank's own mean loss: see `divisor`.
        shards: whether it has `scatter`, and so can serve ranks that each own a shard of every bucket.
    """

    residuals: ClassVar[frozenset[str]] = frozenset()
    counters: ClassVar[frozenset[str]] = frozenset()
    elementwise: ClassVar[bool] = False
    wire_types: ClassVar[frozenset[str]] = frozenset()
    local: ClassVar[bool] = False
    joins: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    own_mean: ClassVar[bool] = False
    shards: ClassVar[bool] = False
    type: str
    match: Annotated[str, Field(min_length=1)] = "*"

    @property
    def period(self) -> int:
        """Updates from one exchange between ranks to the next."""
        return 1

    @property
    def corrects_momentum(self) -> bool:
        """Whether it takes momentum itself, in place of the optimizer."""
        return False

    def check(self, ranks: int, mpi: bool = True) -> None:
        """Refuse a job that this policy cannot serve.

        Args:
            ranks: how many take part.
            mpi: whether Horovod's MPI operations do the reducing, not those of Gloo or NCCL.

        Raises:
            SpecError: saying what is missing.
        """
        del ranks, mpi

    def divisor(self, own: float, total: float) -> float:
        """What a rank's summed gradients are divided by before they are reduced.

        Args:
            own: this rank's weight of the update's window, Σ_m w(r,m).
            total: W, its sum over ranks.
        """
        del own
        return total

    def at(self, update: int) -> Policy:
        """The policy in force at an update, counted from 1, with this one's state; itself by default."""
        del update
        return self

    def init(self, ops: Ops, bucket: Bucket, dtype: str) -> State:
        """The state before the first update; empty for a policy that remembers nothing.

        Args:
            ops: the framework's array verbs.
            bucket: the layout of the bucket.
            dtype: of the gradients.

        Returns:
            Arrays by name.
        """
        del ops, bucket, dtype
        return {}

    @abstractmethod
    def reduce(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """Sum one bucket over all ranks.

        A generator: it yields a request, which is never empty, and is resumed with that request's result.
        State goes in and comes out, so that a skipped update keeps the old one. Where any rank's gradients
        are not finite, the sum must not be finite on any rank.

        Args:
            ops: the framework's array verbs.
            bucket: the layout of the bucket, with at least one element.
            flat: this rank's gradients, shape (bucket.size,); its memory may be reused.
            state: what `init` or the last applied `reduce` returned; never written to.
            update: number of this update, counted from 1; an integer, or a scalar of the framework's.

        Returns:
            A generator whose return value is (sum over ranks with the shape and dtype of `flat`, new state
            under the same names).
        """

    def shard_size(self, bucket: Bucket, ranks: int) -> int:
        """Elements of a rank's shard of a bucket: enough that all shards together hold it.

        Args:
            bucket: the layout of the bucket.
            ranks: how many take part.
        """
        return -(-bucket.size // ranks)

    def scatter(self, ops: Ops, bucket: Bucket, flat: Array, state: State, update: Array) -> Reduction:
        """As `reduce`, but each rank is given its shard of the sum alone.

        Args:
            ops: the framework's array verbs.
            bucket: the layout of the bucket, with at least one element.
            flat: this rank's gradients, shape (ranks * shard_size,), zeros beyond the bucket's size; its
                memory may be reused.
            state: as in `reduce`.
            update: as in `reduce`.

        Returns:
            A generator whose return value is (elements of the sum from rank * shard_size on, shape
            (shard_size,), new state under the same names).
        """
        raise NotImplementedError(self.type)

    def scatter_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Bytes that one rank hands to collectives for one `scatter`; arguments as those of `wire_bytes`."""
        raise NotImplementedError(self.type)

    @abstractmethod
    def wire_bytes(self, bucket: Bucket, itemsize: int, ranks: int) -> int:
        """Bytes that one rank hands to collectives for one update of a bucket.

        Args:
            bucket: the layout of the bucket.
            itemsize: bytes of one gradient element before compression.
            ranks: how many take part.

        Returns:
            The payload in bytes; what an algorithm such as a ring makes of it on each link is not counted.
        """
