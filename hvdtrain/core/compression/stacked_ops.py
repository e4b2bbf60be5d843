"""The array verbs of compression policies for all ranks at once, in NumPy: one array holds every rank's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from hvdtrain.core.compression import noise, numpy_ops


class Stacked(NDArrayOperatorsMixin):
    """One array a rank, and to a policy's code no different from one array.

    Attributes:
        rows: shape (ranks, *shape), or (1, *shape) while all ranks have the same.
    """

    def __init__(self, rows: np.ndarray) -> None:
        """Stack arrays; `rows` as above."""
        self.rows = rows

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each rank's array."""
        return self.rows.shape[1:]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        # What would be written in place (`out`) is made anew: a row may stand for all ranks.
        if method != "__call__" or kwargs.keys() - {"out"}:
            return NotImplemented
        return Stacked(ufunc(*_aligned(*inputs)))

    def __getitem__(self, key: Any) -> Stacked:
        keys = key if isinstance(key, tuple) else (key,)
        if isinstance(keys[0], Stacked):
            index = keys[0].rows
            return Stacked(_every(self.rows, len(index))[(np.arange(len(index)), index, *keys[1:])])
        return Stacked(self.rows[(slice(None), *keys)])

    def __bool__(self) -> bool:
        raise TypeError("ranks may answer differently: a policy must not branch on an array or its rank")

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class StackedOps:
    """Implements `hvdtrain.core.compression.verbs.Ops` for all ranks at once.

    Attributes:
        ranks: how many there are.
        seed: of random numbers.
    """

    ranks: int
    seed: int

    @property
    def rank(self) -> Stacked:
        """Each rank's own."""
        return Stacked(np.arange(self.ranks))

    def cast(self, array: Stacked, dtype: str) -> Stacked:
        """`array` as `dtype`, rounded to nearest even."""
        return Stacked(array.rows.astype(dtype))

    def dtype(self, array: Stacked) -> str:
        """The name of the dtype of `array`."""
        return array.rows.dtype.name

    def to_bytes(self, array: Stacked) -> Stacked:
        """The memory of each row."""
        return Stacked(np.ascontiguousarray(array.rows).view(np.uint8))

    def from_bytes(self, array: Stacked, dtype: str) -> Stacked:
        """The inverse of `to_bytes`."""
        return Stacked(np.ascontiguousarray(array.rows).view(dtype))

    def zeros(self, shape: Sequence[int], dtype: str) -> Stacked:
        """Zeros that nobody else refers to."""
        return Stacked(np.zeros((1, *shape), dtype))

    def reshape(self, array: Stacked, shape: Sequence[int]) -> Stacked:
        """The same elements in another shape."""
        return Stacked(array.rows.reshape(len(array.rows), *shape))

    def split(self, flat: Stacked, sizes: Sequence[int]) -> list[Stacked]:
        """Consecutive parts of a vector."""
        return [Stacked(part) for part in np.split(flat.rows, np.cumsum(sizes)[:-1], axis=1)]

    def concat(self, arrays: Sequence[Stacked], into: Stacked | None = None) -> Stacked:
        """Arrays behind each other along the last axis."""
        del into
        count = max(len(array.rows) for array in arrays)
        return Stacked(np.concatenate([_every(array.rows, count) for array in arrays], axis=-1))

    def transpose(self, matrix: Stacked) -> Stacked:
        """Rows and columns exchanged."""
        return Stacked(matrix.rows.swapaxes(1, 2))

    def max(self, array: Stacked) -> Stacked:
        """The largest element along the last axis."""
        return Stacked(array.rows.max(axis=-1))

    def sum(self, array: Stacked) -> Stacked:
        """The sum along the first axis."""
        return Stacked(array.rows.sum(axis=1))

    def magnitude(self, array: Stacked) -> Stacked:
        """The largest magnitude along the last axis."""
        return Stacked(np.abs(array.rows).max(axis=-1))

    def poison(self, array: Stacked) -> Stacked:
        """0 where all elements along the last axis are finite, else NaN."""
        finite = np.isfinite(array.rows).all(axis=-1)
        return Stacked(np.where(finite, 0.0, np.nan).astype(array.rows.dtype))

    def clip(self, array: Stacked, low: float, high: float) -> Stacked:
        """Each element moved into [low, high]."""
        return Stacked(np.clip(array.rows, low, high))

    def where(self, condition: Stacked, yes: Stacked, no: Stacked) -> Stacked:
        """`yes` where the condition holds, else `no`."""
        return Stacked(np.where(*_aligned(condition, yes, no)))

    def narrow(self, flat: Stacked, scale: Stacked, limit: float) -> tuple[Stacked, Stacked]:
        """`flat * scale` as float16, and how many elements exceed `limit`."""
        scaled = (flat * scale).rows
        kept = np.where(np.isfinite(scaled), np.clip(scaled, -limit, limit), scaled)
        beyond = np.sum(np.abs(scaled) > limit, axis=1, dtype=np.int64)
        return Stacked(kept.astype(np.float16)), Stacked(np.asarray(beyond))

    def widen(self, halves: Stacked, scale: Stacked, flat: Stacked) -> tuple[Stacked, Stacked]:
        """The inverse of `narrow`: `halves / scale` and its largest magnitude."""
        wide = self.cast(halves, self.dtype(flat)) / scale
        return wide, self.cast(self.max(abs(wide)), "float32")

    def shorten(self, flat: Stacked, residual: Stacked) -> tuple[Stacked, Stacked]:
        """`flat + residual` as bfloat16, and what its rounding took."""
        whole = flat + residual
        sent = self.cast(whole, "bfloat16")
        with np.errstate(invalid="ignore"):
            return sent, whole - self.cast(sent, self.dtype(flat))

    def lengthen(self, sums: Stacked, flat: Stacked) -> Stacked:
        """bfloat16 numbers in the dtype of `flat`."""
        return self.cast(sums, self.dtype(flat))

    def quantise(self, numbers: Stacked, noise: Stacked) -> tuple[Stacked, Stacked, Stacked]:
        """Each row as int8 multiples of a step, and what these do not stand for."""
        steps, multiples, lost = numpy_ops.quantise(numbers.rows, noise.rows)
        return Stacked(steps), Stacked(multiples), Stacked(lost)

    def dequantise(self, steps: Stacked, multiples: Stacked, dtype: str) -> Stacked:
        """What `quantise` says."""
        return Stacked(numpy_ops.dequantise(steps.rows, multiples.rows, dtype))

    def power_of_two(self, array: Stacked) -> Stacked:
        """The largest power of two not above each element: its exponent bits alone."""
        return Stacked((array.rows.astype(np.float32).view(np.int32) & 0x7F800000).view(np.float32))

    def matmul(self, left: Stacked, right: Stacked, transpose_right: bool = False) -> Stacked:
        """`left @ right` of matrices, or `left @ right.T`."""
        return left @ (self.transpose(right) if transpose_right else right)

    def minus_product(self, matrix: Stacked, left: Stacked, right: Stacked) -> Stacked:
        """`matrix - left @ right`."""
        return matrix - left @ right

    def orthogonalise(self, matrix: Stacked) -> Stacked:
        """Orthonormal columns that span those of `matrix`."""
        return Stacked(np.linalg.qr(matrix.rows)[0])

    def top_k(self, values: Stacked, k: int) -> Stacked:
        """Where the k largest elements of a vector are."""
        first = values.rows.shape[1] - k
        found = np.argpartition(values.rows, first, axis=1)[:, first:]
        return Stacked(np.sort(found, axis=1).astype(np.int32))

    def take(self, flat: Stacked, indices: Stacked) -> Stacked:
        """The elements of a vector, or the rows of a matrix, at `indices`."""
        if len(indices.rows) == 1:
            return Stacked(flat.rows[:, indices.rows[0]])
        count = len(indices.rows)
        return Stacked(_every(flat.rows, count)[np.arange(count)[:, None], indices.rows])

    def scatter_add(self, target: Stacked, indices: Stacked, values: Stacked) -> Stacked:
        """`target` with each value, or row, added at its index."""
        count = max(len(array.rows) for array in (target, indices, values))
        rows = target.rows if len(target.rows) == count else _every(target.rows, count).copy()
        rows[np.arange(count)[:, None], indices.rows] += values.rows
        return Stacked(rows)

    def spread(self, indices: Stacked, values: Stacked, into: Stacked) -> Stacked:
        """Zeros but for each value, or row, at its index."""
        zeros = self.zeros(into.shape, self.dtype(into))
        return self.scatter_add(zeros, indices, values)

    def add_row(self, matrix: Stacked, row: Stacked, values: Stacked) -> Stacked:
        """`matrix` with a vector added to one of its rows."""
        count = len(row.rows)
        rows = matrix.rows if len(matrix.rows) == count else _every(matrix.rows, count).copy()
        rows[np.arange(count), row.rows] += values.rows
        return Stacked(rows)

    def pack_signs(self, array: Stacked) -> Stacked:
        """Whether each element is at least 0, eight to a byte."""
        return Stacked(np.packbits(array.rows >= 0.0, axis=1))

    def unpack_signs(self, packed: Stacked, count: int, dtype: str) -> Stacked:
        """What the first `count` bits of a vector of bytes say: 1 or -1."""
        return Stacked(np.unpackbits(packed.rows, axis=1, count=count).astype(dtype) * 2 - 1)

    def random_uniform(self, size: int, purpose: str, update: int, *indices: int | Stacked) -> Stacked:
        """`size` float32 numbers in [0, 1)."""
        return self._draw(lambda *key: noise.uniform(size, self.seed, purpose, *key), update, *indices)

    def random_subset(self, size: int, k: int, purpose: str, update: int, *indices: int | Stacked) -> Stacked:
        """k different positions below `size`."""
        return self._draw(lambda *key: noise.subset(size, k, self.seed, purpose, *key), update, *indices)

    def random_orthonormal(
        self, rows: int, columns: int, purpose: str, update: int, *indices: int | Stacked
    ) -> Stacked:
        """Orthonormal columns."""

        def draw(*key: int) -> np.ndarray:
            return noise.orthonormal(rows, columns, self.seed, purpose, *key)

        return self._draw(draw, update, *indices)

    def _draw(self, draw: Callable[..., np.ndarray], *key: int | Stacked) -> Stacked:
        count = max(len(part.rows) if isinstance(part, Stacked) else 1 for part in key)
        every = [_every(p.rows, count) if isinstance(p, Stacked) else np.full(count, p) for p in key]
        return Stacked(np.stack([draw(*parts) for parts in zip(*every, strict=True)]))


def _every(rows: np.ndarray, count: int) -> np.ndarray:
    return np.broadcast_to(rows, (count, *rows.shape[1:]))


def _aligned(*inputs: Any) -> list[Any]:
    """Inputs whose ranks meet along the first axis, and whose shapes meet from the last as NumPy's do."""
    depth = max(array.rows.ndim for array in inputs if isinstance(array, Stacked))
    return [
        array.rows.reshape(len(array.rows), *(1,) * (depth - array.rows.ndim), *array.shape)
        if isinstance(array, Stacked)
        else array
        for array in inputs
    ]
