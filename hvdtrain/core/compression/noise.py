"""The random numbers of compression policies, drawn on the host so that every framework has the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.random import random_words, unit_floats

# A subset is sparse when it has less than one position in so many.
_FEW = 8
_SPARE = 32


def uniform(size: int, seed: int, purpose: str, *indices: int) -> NDArray[np.float32]:
    """Numbers in (0, 1), the middles of 65536 equal parts: float32 (size,).

    The key is as `core.random.generator`'s. 16 bits are plenty for rounding, and drawing them is what costs.
    """
    quarters = random_words(-(-size // 4), seed, purpose, *indices).astype("<u8", copy=False).view("<u2")
    numbers = quarters[:size].astype(np.float32)
    numbers += np.float32(0.5)
    numbers *= np.float32(2.0**-16)
    return numbers


def subset(size: int, k: int, seed: int, purpose: str, *indices: int) -> NDArray[np.int32]:
    """k different positions below `size`: int32 (k,), ascending; the key is as `core.random.generator`'s."""
    if size < _FEW * k:
        return _smallest(size, k, seed, purpose, *indices)
    # Few of many: positions drawn until enough differ, and those too many left out, again by chance.
    drawn = k + k // _FEW + _SPARE
    while True:
        places = (random_words(drawn, seed, purpose, *indices) % np.uint64(size)).astype(np.int32)
        different = np.unique(places)
        if len(different) >= k:
            break
        drawn *= 2
    too_many = len(different) - k
    return np.delete(different, _smallest(len(different), too_many, seed, f"{purpose}, left out", *indices))


def _smallest(size: int, k: int, seed: int, purpose: str, *indices: int) -> NDArray[np.int32]:
    """The k positions that got the smallest of `size` random words."""
    if not 0 < k < size:
        return np.arange(k, dtype=np.int32)
    words = random_words(size, seed, purpose, *indices)
    return np.sort(np.argpartition(words, k)[:k]).astype(np.int32)


def orthonormal(rows: int, columns: int, seed: int, purpose: str, *indices: int) -> NDArray[np.float64]:
    """Orthonormal columns: float64 (rows, columns <= rows); the key is as `core.random.generator`'s."""
    words = random_words(rows * columns, seed, purpose, *indices)
    return np.linalg.qr(2.0 * unit_floats(words).reshape(rows, columns) - 1.0)[0]
