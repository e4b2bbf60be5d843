"""The array verbs of compression policies, in NumPy: the reference for the frameworks'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  # gives NumPy the dtype bfloat16
import numpy as np

from hvdtrain.core.compression import noise, selection
from hvdtrain.core.compression.bits import LARGEST

_Array = np.ndarray


@dataclass(frozen=True)
class Ops:
    """Implements `hvdtrain.core.compression.verbs.Ops`.

    Attributes:
        ranks: how many take part.
        rank: which of them this is.
        seed: of random numbers.
    """

    ranks: int
    rank: int
    seed: int

    def cast(self, array: _Array, dtype: str) -> _Array:
        """`array` as `dtype`, rounded to nearest even."""
        # What is not finite, or too large, is the policies' to see.
        with np.errstate(all="ignore"):
            return np.asarray(array).astype(dtype)

    def dtype(self, array: _Array) -> str:
        """The name of the dtype of `array`."""
        return array.dtype.name

    def to_bytes(self, array: _Array) -> _Array:
        """The memory of each row."""
        return np.ascontiguousarray(array).view(np.uint8)

    def from_bytes(self, array: _Array, dtype: str) -> _Array:
        """The inverse of `to_bytes`."""
        return np.ascontiguousarray(array).view(dtype)

    def zeros(self, shape: Sequence[int], dtype: str) -> _Array:
        """Zeros that nobody else refers to."""
        return np.zeros(shape, dtype)

    def reshape(self, array: _Array, shape: Sequence[int]) -> _Array:
        """The same elements in another shape."""
        return np.reshape(array, shape)

    def split(self, flat: _Array, sizes: Sequence[int]) -> list[_Array]:
        """Consecutive parts of a vector."""
        return np.split(flat, np.cumsum(sizes)[:-1])

    def concat(self, arrays: Sequence[_Array], into: _Array | None = None) -> _Array:
        """Arrays behind each other along the last axis."""
        return np.concatenate(arrays, axis=-1, out=into)

    def transpose(self, matrix: _Array) -> _Array:
        """Rows and columns exchanged."""
        return matrix.T

    def max(self, array: _Array) -> _Array:
        """The largest element along the last axis."""
        return np.max(array, axis=-1)

    def sum(self, array: _Array) -> _Array:
        """The sum along the first axis."""
        return np.sum(array, axis=0)

    def magnitude(self, array: _Array) -> _Array:
        """The largest magnitude along the last axis."""
        return np.max(np.abs(array), axis=-1)

    def poison(self, array: _Array) -> _Array:
        """0 where all elements along the last axis are finite, else NaN."""
        return np.where(np.isfinite(array).all(axis=-1), 0.0, np.nan).astype(array.dtype)

    def clip(self, array: _Array, low: float, high: float) -> _Array:
        """Each element moved into [low, high]."""
        return np.clip(array, low, high)

    def where(self, condition: _Array, yes: _Array, no: _Array) -> _Array:
        """`yes` where the condition holds, else `no`."""
        return np.where(condition, yes, no)

    def narrow(self, flat: _Array, scale: _Array, limit: float) -> tuple[_Array, _Array]:
        """`flat * scale` as float16, and how many elements exceed `limit`."""
        with np.errstate(all="ignore"):
            scaled = flat * scale
            halves = scaled.astype(np.float16)
            clipped = np.where(np.isfinite(scaled), np.clip(halves, -limit, limit), halves)
        return clipped, np.asarray(np.sum(np.abs(scaled) > limit, dtype=np.int64))

    def widen(self, halves: _Array, scale: _Array, flat: _Array) -> tuple[_Array, _Array]:
        """The inverse of `narrow`: `halves / scale` and its largest magnitude."""
        wide = halves.astype(flat.dtype) / scale
        return wide, np.max(np.abs(wide)).astype(np.float32)

    def shorten(self, flat: _Array, residual: _Array) -> tuple[_Array, _Array]:
        """`flat + residual` as bfloat16, and what its rounding took."""
        whole = flat + residual
        sent = self.cast(whole, "bfloat16")
        with np.errstate(all="ignore"):
            return sent, whole - self.cast(sent, self.dtype(flat))

    def lengthen(self, sums: _Array, flat: _Array) -> _Array:
        """bfloat16 numbers in the dtype of `flat`."""
        return self.cast(sums, self.dtype(flat))

    def quantise(self, numbers: _Array, noise: _Array) -> tuple[_Array, _Array, _Array]:
        """Each row as int8 multiples of a step, and what these do not stand for."""
        return quantise(numbers, noise)

    def dequantise(self, steps: _Array, multiples: _Array, dtype: str) -> _Array:
        """What `quantise` says."""
        return dequantise(steps, multiples, dtype)

    def power_of_two(self, array: _Array) -> _Array:
        """The largest power of two not above each element: its exponent bits alone."""
        return (np.asarray(array, np.float32).view(np.int32) & 0x7F800000).view(np.float32)

    def matmul(self, left: _Array, right: _Array, transpose_right: bool = False) -> _Array:
        """`left @ right` of matrices, or `left @ right.T`."""
        return left @ (right.T if transpose_right else right)

    def minus_product(self, matrix: _Array, left: _Array, right: _Array) -> _Array:
        """`matrix - left @ right`."""
        matrix -= left @ right
        return matrix

    def orthogonalise(self, matrix: _Array) -> _Array:
        """Orthonormal columns that span those of `matrix`."""
        return np.linalg.qr(matrix)[0]

    def top_k(self, values: _Array, k: int) -> _Array:
        """Where the k largest elements of a vector are."""
        return selection.largest(values, k)

    def take(self, flat: _Array, indices: _Array) -> _Array:
        """The elements of a vector, or the rows of a matrix, at `indices`."""
        return flat[indices]

    def scatter_add(self, target: _Array, indices: _Array, values: _Array) -> _Array:
        """`target` with each value, or row, added at its index."""
        target[indices] += values
        return target

    def spread(self, indices: _Array, values: _Array, into: _Array) -> _Array:
        """Zeros but for each value, or row, at its index."""
        into.fill(0)
        return self.scatter_add(into, indices, values)

    def add_row(self, matrix: _Array, row: int, values: _Array) -> _Array:
        """`matrix` with a vector added to one of its rows."""
        matrix[row] += values
        return matrix

    def pack_signs(self, array: _Array) -> _Array:
        """Whether each element is at least 0, eight to a byte."""
        return np.packbits(array >= 0.0)

    def unpack_signs(self, packed: _Array, count: int, dtype: str) -> _Array:
        """What the first `count` bits of a vector of bytes say: 1 or -1."""
        return np.where(np.unpackbits(packed, count=count), 1.0, -1.0).astype(dtype)

    def random_uniform(self, size: int, purpose: str, update: int, *indices: int) -> _Array:
        """`size` float32 numbers in [0, 1)."""
        return noise.uniform(size, self.seed, purpose, update, *indices)

    def random_subset(self, size: int, k: int, purpose: str, update: int, *indices: int) -> _Array:
        """k different positions below `size`."""
        return noise.subset(size, k, self.seed, purpose, update, *indices)

    def random_orthonormal(self, rows: int, columns: int, purpose: str, update: int, *indices: int) -> _Array:
        """Orthonormal columns."""
        return noise.orthonormal(rows, columns, self.seed, purpose, update, *indices)


def quantise(numbers: _Array, noise: _Array) -> tuple[_Array, _Array, _Array]:
    """`verbs.Ops.quantise` of rows along the last axis, whatever axes are before it."""
    with np.errstate(all="ignore"):
        steps = (np.max(np.abs(numbers), axis=-1) / LARGEST).astype(np.float32)
        divisors = np.where(steps > 0.0, steps, 1.0).astype(numbers.dtype)[..., None]
        scaled = np.floor(numbers / divisors + noise.astype(numbers.dtype))
        multiples = np.clip(scaled, -LARGEST, LARGEST).astype(np.int8)
        return steps, multiples, numbers - dequantise(steps, multiples, numbers.dtype.name)


def dequantise(steps: _Array, multiples: _Array, dtype: str) -> _Array:
    """`verbs.Ops.dequantise` of rows along the last axis, whatever axes are before it."""
    return multiples.astype(dtype) * steps.astype(dtype)[..., None]
