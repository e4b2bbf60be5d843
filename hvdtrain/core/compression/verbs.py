"""The array verbs that policies are written in; NumPy and each framework implement them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any


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

    def shorten(self, flat: Array, residual: Array) -> tuple[Array, Array]:
        """`flat + residual` as bfloat16, and what its rounding took; may reuse the memory of `flat`."""
        ...

    def lengthen(self, sums: Array, flat: Array) -> Array:
        """bfloat16 numbers in the dtype of `flat`, whose memory may be reused."""
        ...

    def quantise(self, numbers: Array, noise: Array) -> tuple[Array, Array, Array]:
        """Each row as int8 multiples of a step, in few passes; may reuse the memory of `numbers`.

        Args:
            numbers: (rows, length).
            noise: float32 numbers in [0, 1) as many: a multiple is rounded down after one is added to it.

        Returns:
            The steps, float32 (rows,): a row's largest magnitude / 127, not finite where an element is not;
            the multiples, int8 (rows, length); and what they do not stand for, as `numbers`.
        """
        ...

    def dequantise(self, steps: Array, multiples: Array, dtype: str) -> Array:
        """What `quantise` says: `multiples`, each row times its step, as `dtype` (rows, length)."""
        ...

    def power_of_two(self, array: Array) -> Array:
        """The largest power of two not above each element: float32, of positive normal float32 numbers."""
        ...

    def matmul(self, left: Array, right: Array, transpose_right: bool = False) -> Array:
        """`left @ right` of matrices, or `left @ right.T`; as quick where one of them is thin."""
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

    def spread(self, indices: Array, values: Array, into: Array) -> Array:
        """Zeros but for each value, or row, at its index, no index twice: like `into`, or in its memory."""
        ...

    def add_row(self, matrix: Array, row: Array, values: Array) -> Array:
        """`matrix` with a vector added to one of its rows; may reuse the memory of `matrix`."""
        ...

    def pack_signs(self, array: Array) -> Array:
        """Whether each element along the last axis is at least 0, eight to a byte: uint8.

        The first is in the highest bit; the last byte is padded with zeros.
        """
        ...

    def unpack_signs(self, packed: Array, count: int, dtype: str) -> Array:
        """What the first `count` bits of a vector of bytes say: 1 or -1."""
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
