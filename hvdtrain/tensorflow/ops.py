"""The array verbs of compression policies, in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf
from horovod.tensorflow.mpi_ops import MPI_LIB

from hvdtrain.core.compression import noise, selection
from hvdtrain.core.compression.bits import GATHER, LARGEST, SIGNS


@dataclass(frozen=True)
class Ops:
    """Implements `hvdtrain.core.compression.verbs.Ops`; shapes are known while TensorFlow traces.

    Attributes:
        ranks: how many take part.
        rank: which of them this is.
        seed: of random numbers.
    """

    ranks: int
    rank: int
    seed: int

    @cached_property
    def _subsets(self) -> noise.Subsets:
        return noise.Subsets(self.seed)

    def cast(self, array: tf.Tensor, dtype: str) -> tf.Tensor:
        """`array` as `dtype`, rounded to nearest even."""
        return tf.cast(array, dtype)

    def dtype(self, array: tf.Tensor) -> str:
        """The name of the dtype of `array`."""
        return array.dtype.name

    def to_bytes(self, array: tf.Tensor) -> tf.Tensor:
        """The memory of each row."""
        # Bytes come as a further axis, except where an element is one.
        return tf.reshape(tf.bitcast(array, tf.uint8), [*array.shape[:-1], -1])

    def from_bytes(self, array: tf.Tensor, dtype: str) -> tf.Tensor:
        """The inverse of `to_bytes`."""
        size = tf.as_dtype(dtype).size
        shape = [*array.shape[:-1], array.shape[-1] // size]
        return tf.bitcast(tf.reshape(array, [*shape, size] if size > 1 else shape), dtype)

    def zeros(self, shape: Sequence[int], dtype: str) -> tf.Tensor:
        """Zeros that nobody else refers to."""
        return tf.zeros(shape, dtype)

    def reshape(self, array: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
        """The same elements in another shape."""
        return tf.reshape(array, shape)

    def split(self, flat: tf.Tensor, sizes: Sequence[int]) -> list[tf.Tensor]:
        """Consecutive parts of a vector."""
        return tf.split(flat, list(sizes))

    def concat(self, arrays: Sequence[tf.Tensor], into: tf.Tensor | None = None) -> tf.Tensor:
        """Arrays behind each other along the last axis."""
        del into
        return tf.concat(list(arrays), -1)

    def transpose(self, matrix: tf.Tensor) -> tf.Tensor:
        """Rows and columns exchanged."""
        return tf.transpose(matrix)

    def max(self, array: tf.Tensor) -> tf.Tensor:
        """The largest element along the last axis."""
        return tf.reduce_max(array, -1)

    def sum(self, array: tf.Tensor) -> tf.Tensor:
        """The sum along the first axis."""
        return tf.reduce_sum(array, 0)

    def magnitude(self, array: tf.Tensor) -> tf.Tensor:
        """The largest magnitude along the last axis."""
        # TensorFlow's own loops are quick for one row, XLA's for many short ones.
        if array.shape.rank == 1:
            return tf.maximum(tf.reduce_max(array), -tf.reduce_min(array))
        return _magnitudes(array)

    def poison(self, array: tf.Tensor) -> tf.Tensor:
        """0 where all elements along the last axis are finite, else NaN."""
        finite = tf.reduce_all(tf.math.is_finite(array), -1)
        return tf.where(finite, tf.constant(0.0, array.dtype), tf.constant(np.nan, array.dtype))

    def clip(self, array: tf.Tensor, low: float, high: float) -> tf.Tensor:
        """Each element moved into [low, high]."""
        return tf.clip_by_value(array, tf.constant(low, array.dtype), tf.constant(high, array.dtype))

    def where(self, condition: tf.Tensor, yes: tf.Tensor, no: tf.Tensor) -> tf.Tensor:
        """`yes` where the condition holds, else `no`."""
        return tf.where(condition, yes, no)

    def narrow(self, flat: tf.Tensor, scale: tf.Tensor, limit: float) -> tuple[tf.Tensor, tf.Tensor]:
        """`flat * scale` as float16, and how many elements exceed `limit`."""
        narrow = _codec("narrow", flat.dtype) or _narrow
        return narrow(flat, scale, tf.constant(limit, flat.dtype))

    def widen(self, halves: tf.Tensor, scale: tf.Tensor, flat: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The inverse of `narrow`: `halves / scale` and its largest magnitude."""
        if codec := _codec("widen", scale.dtype):
            return codec(halves, 1.0 / scale)
        wide = _widen(halves, scale)
        return wide, tf.cast(self.magnitude(wide), tf.float32)

    def shorten(self, flat: tf.Tensor, residual: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """`flat + residual` as bfloat16, and what its rounding took."""
        if codec := _codec("shorten", flat.dtype):
            return codec(flat, residual)
        whole = flat + residual
        sent = tf.cast(whole, tf.bfloat16)
        return sent, whole - tf.cast(sent, flat.dtype)

    def lengthen(self, sums: tf.Tensor, flat: tf.Tensor) -> tf.Tensor:
        """bfloat16 numbers in the dtype of `flat`."""
        if codec := _codec("lengthen", flat.dtype):
            return codec(sums)
        return tf.cast(sums, flat.dtype)

    def quantise(self, numbers: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Each row as int8 multiples of a step, and what these do not stand for."""
        if codec := _codec("quantise", numbers.dtype):
            return codec(numbers, noise)
        steps = tf.cast(self.magnitude(numbers) / LARGEST, tf.float32)
        divisors = tf.cast(tf.where(steps > 0.0, steps, 1.0), numbers.dtype)
        scaled = tf.floor(numbers / divisors[:, None] + tf.cast(noise, numbers.dtype))
        multiples = tf.cast(self.clip(scaled, -LARGEST, LARGEST), tf.int8)
        return steps, multiples, numbers - self.dequantise(steps, multiples, numbers.dtype.name)

    def dequantise(self, steps: tf.Tensor, multiples: tf.Tensor, dtype: str) -> tf.Tensor:
        """What `quantise` says."""
        if codec := _codec("dequantise", tf.as_dtype(dtype)):
            return codec(steps, multiples)
        return tf.cast(multiples, dtype) * tf.cast(steps, dtype)[:, None]

    def power_of_two(self, array: tf.Tensor) -> tf.Tensor:
        """The largest power of two not above each element: its exponent bits alone."""
        bits = tf.bitcast(tf.cast(array, tf.float32), tf.int32)
        return tf.bitcast(tf.bitwise.bitwise_and(bits, 0x7F800000), tf.float32)

    def matmul(self, left: tf.Tensor, right: tf.Tensor, transpose_right: bool = False) -> tf.Tensor:
        """`left @ right` of matrices, or `left @ right.T`."""
        return _matmul(left, right, transpose_right)

    def minus_product(self, matrix: tf.Tensor, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
        """`matrix - left @ right`."""
        return _minus_product(matrix, left, right)

    def orthogonalise(self, matrix: tf.Tensor) -> tf.Tensor:
        """Orthonormal columns that span those of `matrix`."""
        return tf.linalg.qr(matrix)[0]

    def top_k(self, values: tf.Tensor, k: int) -> tf.Tensor:
        """Where the k largest elements of a vector are."""
        if tf.config.list_logical_devices("GPU"):
            return tf.sort(tf.math.top_k(values, k, sorted=False).indices)
        found = tf.numpy_function(lambda v: selection.largest(v, k), [values], "int32", stateful=False)
        return tf.ensure_shape(found, (k,))

    def take(self, flat: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        """The elements of a vector, or the rows of a matrix, at `indices`."""
        return tf.gather(flat, indices)

    def scatter_add(self, target: tf.Tensor, indices: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """`target` with each value, or row, added at its index."""
        return target + self.spread(indices, values, target)

    def spread(self, indices: tf.Tensor, values: tf.Tensor, into: tf.Tensor) -> tf.Tensor:
        """Zeros but for each value, or row, at its index."""
        # On a CPU several times faster than scatter_nd, which takes each index for a slice.
        return tf.math.unsorted_segment_sum(values, indices, into.shape[0])

    def add_row(self, matrix: tf.Tensor, row: int, values: tf.Tensor) -> tf.Tensor:
        """`matrix` with a vector added to one of its rows."""
        return tf.tensor_scatter_nd_add(matrix, [[row]], values[None])

    def pack_signs(self, array: tf.Tensor) -> tf.Tensor:
        """Whether each element is at least 0, eight to a byte."""
        padded = tf.pad(tf.cast(array >= 0.0, tf.uint8), [[0, -array.shape[0] % 8]])
        octets = tf.bitcast(tf.reshape(padded, [-1, 8]), tf.int64)
        return tf.cast(tf.bitwise.right_shift(octets * GATHER, 56) & 255, tf.uint8)

    def unpack_signs(self, packed: tf.Tensor, count: int, dtype: str) -> tf.Tensor:
        """What the first `count` bits of a vector of bytes say: 1 or -1."""
        octets = tf.gather(tf.constant(SIGNS, dtype), tf.cast(packed, tf.int32))
        return tf.reshape(octets, [-1])[:count]

    def random_uniform(self, size: int, purpose: str, update: tf.Tensor, *indices: int) -> tf.Tensor:
        """`size` float32 numbers in [0, 1)."""
        return _draw(lambda u: noise.uniform(size, self.seed, purpose, u, *indices), update, "float32", size)

    def random_subset(self, size: int, k: int, purpose: str, update: tf.Tensor, *indices: int) -> tf.Tensor:
        """k different positions below `size`."""
        return _draw(lambda u: self._subsets.draw(size, k, purpose, u, *indices), update, "int32", k)

    def random_orthonormal(
        self, rows: int, columns: int, purpose: str, update: tf.Tensor, *indices: int
    ) -> tf.Tensor:
        """Orthonormal columns."""

        def draw(u: int) -> np.ndarray:
            return noise.orthonormal(rows, columns, self.seed, purpose, u, *indices)

        return _draw(draw, update, "float64", rows, columns)


def _codec(name: str, dtype: tf.DType) -> Callable[..., Any] | None:
    """A codec that makes one pass, where Horovod was built with it and it takes such a vector."""
    if dtype == tf.float32 and not tf.config.list_logical_devices("GPU"):
        return getattr(MPI_LIB, f"horovod_{name}", None)
    return None


# Compiled by XLA, which makes one loop of several verbs; a whole step cannot be, for Horovod is in its midst.
@tf.function(jit_compile=True)
def _magnitudes(array: tf.Tensor) -> tf.Tensor:
    largest = tf.maximum(tf.reduce_max(array, -1), -tf.reduce_min(array, -1))
    # XLA's maximum loses NaN.
    lost = tf.reduce_any(tf.math.is_nan(array), -1)
    return tf.where(lost, tf.constant(np.nan, array.dtype), largest)


@tf.function(jit_compile=True)
def _narrow(flat: tf.Tensor, scale: tf.Tensor, limit: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    scaled = flat * scale
    kept = tf.where(tf.math.is_finite(scaled), tf.clip_by_value(scaled, -limit, limit), scaled)
    # Hardly an update ever has anything to count.
    over = tf.cond(
        tf.maximum(tf.reduce_max(flat), -tf.reduce_min(flat)) * scale <= limit,
        lambda: tf.constant(0, tf.int64),
        lambda: tf.math.count_nonzero(tf.abs(flat * scale) > limit),
    )
    return tf.cast(kept, tf.float16), over


@tf.function(jit_compile=True)
def _widen(halves: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return tf.cast(halves, scale.dtype) / scale


# TensorFlow's own products are up to ten times slower where a matrix is thin and the CPU has no AVX-512.
@tf.function(jit_compile=True)
def _matmul(left: tf.Tensor, right: tf.Tensor, transpose_right: bool) -> tf.Tensor:
    return tf.matmul(left, right, transpose_b=transpose_right)


@tf.function(jit_compile=True)
def _minus_product(matrix: tf.Tensor, left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    return matrix - tf.matmul(left, right)


def _draw(draw: Callable[[int], np.ndarray], update: tf.Tensor, dtype: str, *shape: int) -> tf.Tensor:
    found = tf.numpy_function(lambda u: draw(int(u)), [update], dtype, stateful=False)
    return tf.ensure_shape(found, shape)
