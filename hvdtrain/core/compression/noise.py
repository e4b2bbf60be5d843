"""The random numbers of compression policies, drawn on the host so that every framework has the same."""

from __future__ import annotations

from threading import Lock

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.random import random_words, unit_floats


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
    """k different positions below `size`: int32 (k,), ascending; the key is as `core.random.generator`'s.

    One in each of k parts as equal as can be, on a ring that is cut open anywhere: each position has the same
    chance k / size, and nothing need be sorted or drawn twice (stratified sampling, Cochran 1977, chapter 5).
    """
    if not k:
        return np.zeros(0, np.int32)
    # 32 bits are plenty for a place below a length, and drawing them is half of what costs.
    words = random_words(k // 2 + 1, seed, purpose, *indices).astype("<u8", copy=False).view("<u4")
    edges = np.arange(k + 1) * size // k
    # A word times a length, its upper half: below the length, without a division.
    inside = words[1 : k + 1] * np.diff(edges) >> 32
    places = inside + edges[:-1] + (int(words[0]) * size >> 32)
    over = int(np.searchsorted(places, size))
    return np.concatenate([places[over:] - size, places[:over]], dtype=np.int32, casting="same_kind")


class Subsets:
    """`subset`s of one seed: all that an update will ask for are drawn together, when it asks for the first.

    One at a time, between backward's other work, takes several times as long: caches hold none of it by then.
    """

    def __init__(self, seed: int) -> None:
        """Draw nothing yet."""
        self._seed, self._update = seed, 0
        self._asked: set[_Key] = set()
        self._drawn: dict[_Key, NDArray[np.int32]] = {}
        # TensorFlow asks from several threads.
        self._lock = Lock()

    def draw(self, size: int, k: int, purpose: str, update: int, *indices: int) -> NDArray[np.int32]:
        """`subset(size, k, seed, purpose, update, *indices)`."""
        key = size, k, purpose, indices
        with self._lock:
            if update != self._update:
                # What the last update asked for: during a warm-up that changes.
                self._update, last, self._asked = update, self._asked, set()
                self._drawn = {key: self._subset(update, *key) for key in last}
            self._asked.add(key)
            found = self._drawn.pop(key, None)
        return self._subset(update, *key) if found is None else found

    def _subset(
        self, update: int, size: int, k: int, purpose: str, indices: tuple[int, ...]
    ) -> NDArray[np.int32]:
        return subset(size, k, self._seed, purpose, update, *indices)


_Key = tuple[int, int, str, tuple[int, ...]]


def orthonormal(rows: int, columns: int, seed: int, purpose: str, *indices: int) -> NDArray[np.float64]:
    """Orthonormal columns: float64 (rows, columns <= rows); the key is as `core.random.generator`'s."""
    words = random_words(rows * columns, seed, purpose, *indices)
    return np.linalg.qr(2.0 * unit_floats(words).reshape(rows, columns) - 1.0)[0]
