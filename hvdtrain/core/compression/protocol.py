"""What a compression policy is: a pure algorithm that asks for collectives and calls no library of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeAlias

from pydantic import Field

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.sections import Section

Array: TypeAlias = Any
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
class AdasumReduce:
    """Asks for all ranks' `array` combined by Adasum, each of its consecutive parts of `sizes` by itself.

    Adasum (Maleki et al. 2021, arXiv:2006.02924) adds what is orthogonal and averages what is parallel.
    """

    array: Array
    sizes: tuple[int, ...]


Request: TypeAlias = AllReduce | AllGather | AllToAll | AdasumReduce
Reduction: TypeAlias = Generator[Request, Array, tuple[Array, State]]


class Ops(Protocol):
    """The array verbs a policy may use beside operators and slices; each framework implements them once.

    Augmented assignment (`+=`) may write in place: it is for arrays that the policy made or may reuse.
    Dtypes are NumPy's names, and `bfloat16`. `update` may be an integer or a scalar of the framework's;
    random numbers depend on the job's seed and on what their verb is given, and on nothing else.
    """

    @property
    def ranks(self) -> int:
        """How many ranks take part."""
        ...

    @property
    def rank(self) -> Array:
        """Which of them this is, from 0: an index of rows and a key of random numbers, never a condition."""
        ...

    def cast(self, array: Array, dtype: str) -> Array:
        """`array` as `dtype`, rounded to nearest even."""
        ...

    def dtype(self, array: Array) -> str:
        """The name of the dtype of `array`."""
        ...

    def to_bytes(self, array: Array) -> Array:
        """The memory of each row: uint8, the last axis longer by the size of an element."""
        ...

    def from_bytes(self, array: Array, dtype: str) -> Array:
        """The inverse of `to_bytes`."""
        ...

    def zeros(self, shape: Sequence[int], dtype: str) -> Array:
        """Zeros that nobody else refers to."""
        ...

    def reshape(self, array: Array, shape: Sequence[int]) -> Array:
        """The same elements in another shape, of which one extent may be -1."""
        ...

    def split(self, flat: Array, sizes: Sequence[int]) -> list[Array]:
        """Consecutive parts of a vector; they may share its memory."""
        ...

    def concat(self, arrays: Sequence[Array], into: Array | None = None) -> Array:
        """Arrays behind each other along the last axis; may reuse the memory of `into`, which is as large."""
        ...

    def transpose(self, matrix: Array) -> Array:
        """Rows and columns exchanged."""
        ...

    def repeat(self, values: Array, counts: Sequence[int]) -> Array:
        """A vector of each value as often as its count says."""
        ...

    def max(self, array: Array) -> Array:
        """The largest element along the last axis."""
        ...

    def sum(self, array: Array) -> Array:
        """The sum along the first axis."""
        ...

    def magnitude(self, array: Array) -> Array:
        """The largest magnitude along the last axis; not finite where an element is not."""
        ...

    def poison(self, array: Array) -> Array:
        """0 where all elements along the last axis are finite, else NaN, in the dtype of `array`."""
        ...

    def floor(self, array: Array) -> Array:
        """Rounded down."""
        ...

    def clip(self, array: Array, low: float, high: float) -> Array:
        """Each element moved into [low, high]; what becomes of NaN is left open."""
        ...

    def where(self, condition: Array, yes: Array, no: Array) -> Array:
        """`yes` where the condition holds, else `no`; arrays of one dtype."""
        ...

    def narrow(self, flat: Array, scale: Array, limit: float) -> tuple[Array, Array]:
        """`flat * scale` as float16 in as few passes as can be; may reuse the memory of `flat`.

        Args:
            flat: a vector.
            scale: a power of two, in the dtype of `flat`.
            limit: largest magnitude to keep.

        Returns:
            The rounded vector, finite elements moved into [-limit, limit] and the others left as they are;
            and how many exceeded `limit`, int64.
        """
        ...

    def widen(self, halves: Array, scale: Array, flat: Array) -> tuple[Array, Array]:
        """The inverse of `narrow`: `halves / scale` and its largest magnitude.

        Args:
            halves: a float16 vector.
            scale: a power of two, in the dtype of `flat`.
            flat: whose dtype to return; its memory may be reused.

        Returns:
            The vector, and the largest magnitude in it as float32; NaN when there is one.
        """
        ...

    def power_of_two(self, array: Array) -> Array:
        """The largest power of two not above each element: float32, of positive normal float32 numbers."""
        ...

    def minus_product(self, matrix: Array, left: Array, right: Array) -> Array:
        """`matrix - left @ right`; may reuse the memory of `matrix`."""
        ...

    def orthogonalise(self, matrix: Array) -> Array:
        """Orthonormal columns that span those of `matrix` (rows, columns <= rows), by reduced QR."""
        ...

    def top_k(self, values: Array, k: int) -> Array:
        """Where the k largest elements of a vector are: int32 (k,), ascending."""
        ...

    def take(self, flat: Array, indices: Array) -> Array:
        """The elements of a vector, or the rows of a matrix, at `indices`."""
        ...

    def scatter_add(self, target: Array, indices: Array, values: Array) -> Array:
        """`target` with each value, or row, added at its index, no index twice; may reuse its memory."""
        ...

    def add_row(self, matrix: Array, row: Array, values: Array) -> Array:
        """`matrix` with a vector added to one of its rows; may reuse the memory of `matrix`."""
        ...

    def pack_bits(self, bits: Array) -> Array:
        """Eight booleans to a byte, the first in the highest bit, padded with zeros: uint8."""
        ...

    def unpack_signs(self, packed: Array, count: int, dtype: str) -> Array:
        """The first `count` booleans of a vector of bytes, as 1 where they hold, else -1."""
        ...

    def random_uniform(self, size: int, purpose: str, update: Array, *indices: int) -> Array:
        """`size` float32 numbers in [0, 1)."""
        ...

    def random_subset(self, size: int, k: int, purpose: str, update: Array, *indices: int) -> Array:
        """k different positions below `size`: int32 (k,), ascending."""
        ...

    def random_orthonormal(
        self, rows: int, columns: int, purpose: str, update: Array, *indices: int
    ) -> Array:
        """Orthonormal columns (at most as many as rows): float64 (rows, columns)."""
        ...


class Policy(Section, ABC):
    """How one bucket of gradients is summed over all ranks; its fields are the spec's `compression` section.

    Frozen, without I/O, and hashable. The fields say what holds at steady state.

    Attributes:
        type: how the spec calls it.
        match: names of the weights that travel by it, as a shell pattern (`*`, `?`, `[...]`).
        residuals: names of those state arrays whose sum over ranks is what matters: they differ by rank and
            keep their sum when the number of ranks changes.
        elementwise: whether the order of elements inside a weight makes no difference to the result.
        wire_types: dtypes it sends that Horovod as released does not, by NumPy's names.
        local: whether, at this update, ranks take updates of their own and hear nothing of each other.
        whole: whether it is for all weights or none: it cannot share a job with other policies.
    """

    residuals: ClassVar[frozenset[str]] = frozenset()
    elementwise: ClassVar[bool] = False
    wire_types: ClassVar[frozenset[str]] = frozenset()
    local: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    type: str
    match: Annotated[str, Field(min_length=1)] = "*"

    @property
    def period(self) -> int:
        """Updates from one exchange between ranks to the next."""
        return 1

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
