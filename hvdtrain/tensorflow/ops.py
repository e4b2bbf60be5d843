"""The array verbs of compression policies, in TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from hvdtrain.core.compression import noise


@dataclass(frozen=True)
class Ops:
    """Implements `hvdtrain.core.compression.protocol.Ops`; shapes are known while TensorFlow traces.

    Attributes:
        ranks: how many take part.
        rank: which of them this is.
        seed: of random numbers.
    """

    ranks: int
    rank: int
    seed: int

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

    def concat(self, arrays: Sequence[tf.Tensor]) -> tf.Tensor:
        """Arrays behind each other along the last axis."""
        return tf.concat(list(arrays), -1)

    def transpose(self, matrix: tf.Tensor) -> tf.Tensor:
        """Rows and columns exchanged."""
        return tf.transpose(matrix)

    def repeat(self, values: tf.Tensor, counts: Sequence[int]) -> tf.Tensor:
        """A vector of each value as often as its count says."""
        return tf.concat([tf.fill([n], v) for v, n in zip(tf.unstack(values), counts, strict=True)], 0)

    def max(self, array: tf.Tensor) -> tf.Tensor:
        """The largest element along the last axis."""
        return tf.reduce_max(array, -1)

    def sum(self, array: tf.Tensor) -> tf.Tensor:
        """The sum along the first axis."""
        return tf.reduce_sum(array, 0)

    def poison(self, array: tf.Tensor) -> tf.Tensor:
        """0 where all elements along the last axis are finite, else NaN."""
        finite = tf.reduce_all(tf.math.is_finite(array), -1)
        return tf.where(finite, tf.constant(0.0, array.dtype), tf.constant(np.nan, array.dtype))

    def floor(self, array: tf.Tensor) -> tf.Tensor:
        """Rounded down."""
        return tf.floor(array)

    def clip(self, array: tf.Tensor, low: float, high: float) -> tf.Tensor:
        """Each element moved into [low, high]."""
        return tf.clip_by_value(array, tf.constant(low, array.dtype), tf.constant(high, array.dtype))

    def where(self, condition: tf.Tensor, yes: tf.Tensor, no: tf.Tensor) -> tf.Tensor:
        """`yes` where the condition holds, else `no`."""
        return tf.where(condition, yes, no)

    def power_of_two(self, array: tf.Tensor) -> tf.Tensor:
        """The largest power of two not above each element: its exponent bits alone."""
        bits = tf.bitcast(tf.cast(array, tf.float32), tf.int32)
        return tf.bitcast(tf.bitwise.bitwise_and(bits, 0x7F800000), tf.float32)

    def orthogonalise(self, matrix: tf.Tensor) -> tf.Tensor:
        """Orthonormal columns that span those of `matrix`."""
        return tf.linalg.qr(matrix)[0]

    def top_k(self, values: tf.Tensor, k: int) -> tf.Tensor:
        """Where the k largest elements of a vector are."""
        return tf.sort(tf.math.top_k(values, k, sorted=False).indices)

    def take(self, flat: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
        """The elements of a vector, or the rows of a matrix, at `indices`."""
        return tf.gather(flat, indices)

    def scatter_add(self, target: tf.Tensor, indices: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """`target` with each value, or row, added at its index."""
        return tf.tensor_scatter_nd_add(target, indices[:, None], values)

    def add_row(self, matrix: tf.Tensor, row: int, values: tf.Tensor) -> tf.Tensor:
        """`matrix` with a vector added to one of its rows."""
        return tf.tensor_scatter_nd_add(matrix, [[row]], values[None])

    def pack_bits(self, bits: tf.Tensor) -> tf.Tensor:
        """Eight booleans to a byte."""
        padded = tf.pad(tf.cast(bits, tf.int32), [[0, -bits.shape[0] % 8]])
        octets = tf.bitwise.left_shift(tf.reshape(padded, [-1, 8]), _shifts(tf.int32))
        return tf.cast(tf.reduce_sum(octets, 1), tf.uint8)

    def unpack_bits(self, packed: tf.Tensor, count: int) -> tf.Tensor:
        """The first `count` booleans of a vector of bytes."""
        octets = tf.bitwise.right_shift(packed[:, None], _shifts(tf.uint8))
        return tf.reshape(tf.bitwise.bitwise_and(octets, 1) > 0, [-1])[:count]

    def random_uniform(self, size: int, purpose: str, update: tf.Tensor, *indices: int) -> tf.Tensor:
        """`size` float32 numbers in [0, 1)."""
        return _draw(lambda u: noise.uniform(size, self.seed, purpose, u, *indices), update, "float32", size)

    def random_subset(self, size: int, k: int, purpose: str, update: tf.Tensor, *indices: int) -> tf.Tensor:
        """k different positions below `size`."""
        return _draw(lambda u: noise.subset(size, k, self.seed, purpose, u, *indices), update, "int32", k)

    def random_orthonormal(
        self, rows: int, columns: int, purpose: str, update: tf.Tensor, *indices: int
    ) -> tf.Tensor:
        """Orthonormal columns."""

        def draw(u: int) -> np.ndarray:
            return noise.orthonormal(rows, columns, self.seed, purpose, u, *indices)

        return _draw(draw, update, "float64", rows, columns)


def _shifts(dtype: tf.DType) -> tf.Tensor:
    return tf.constant([7, 6, 5, 4, 3, 2, 1, 0], dtype)


def _draw(draw: Callable[[int], np.ndarray], update: tf.Tensor, dtype: str, *shape: int) -> tf.Tensor:
    found = tf.numpy_function(lambda u: draw(int(u)), [update], dtype, stateful=False)
    return tf.ensure_shape(found, shape)
