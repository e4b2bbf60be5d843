"""The random numbers of compression policies, drawn on the host so that every framework has the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.random import random_words, unit_floats


def uniform(size: int, seed: int, purpose: str, *indices: int) -> NDArray[np.float32]:
    """Numbers in [0, 1) from 24 bits each: float32 (size,); the key is as `core.random.generator`'s."""
    halves = random_words(-(-size // 2), seed, purpose, *indices).astype("<u8").view("<u4")[:size]
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def subset(size: int, k: int, seed: int, purpose: str, *indices: int) -> NDArray[np.int32]:
    """k different positions below `size`: int32 (k,), ascending; the key is as `core.random.generator`'s."""
    words = random_words(size, seed, purpose, *indices)
    return np.sort(np.argsort(words, kind="stable")[:k]).astype(np.int32)


def orthonormal(rows: int, columns: int, seed: int, purpose: str, *indices: int) -> NDArray[np.float64]:
    """Orthonormal columns: float64 (rows, columns <= rows); the key is as `core.random.generator`'s."""
    words = random_words(rows * columns, seed, purpose, *indices)
    return np.linalg.qr(2.0 * unit_floats(words).reshape(rows, columns) - 1.0)[0]
