"""Random numbers that depend only on what they are for: no state to save, equal on every rank and machine."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray


def generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A NumPy generator that belongs to one purpose and place, independent of all others.

    NumPy promises that a bit generator's raw words never change between versions, but not that the methods of
    `Generator` do not; what must stay equal for ever draws `random_words` instead.

    Args:
        seed: the job's seed, any integer.
        purpose: what the numbers are for, such as `"order"` or `"mask"`.
        *indices: where they are used, such as epoch and sample; any integers.

    Returns:
        A generator over Philox4x64-10 (Salmon et al. 2011), whose 128-bit key is a BLAKE2b hash of the
        arguments.
    """
    return np.random.Generator(_philox(seed, purpose, *indices))


def random_words(count: int, seed: int, purpose: str, *indices: int) -> NDArray[np.uint64]:
    """The first `count` raw 64-bit words of `generator(seed, purpose, *indices)`, uint64 (count,)."""
    return _philox(seed, purpose, *indices).random_raw(count)


def unit_floats(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) from the upper 53 bits of raw words: float64, same shape."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def framework_seed(seed: int, rank: int, step: int = 0) -> int:
    """What a rank seeds its framework's own generators with, dropout's above all.

    Args:
        seed: the job's seed, any integer.
        rank: this rank, from 0.
        step: after which a run goes on whose generators were not kept.

    Returns:
        An integer below 2^32, which every framework takes; never the same on two ranks of a job.
    """
    (word,) = random_words(1, seed, "framework", *([step] if step else []))
    return (int(word) + rank) % 2**32


def _philox(seed: int, purpose: str, *indices: int) -> np.random.Philox:
    # JSON, because it cannot confuse ("a", 1, 2) with ("a", 12) or ("a1", 2).
    name = json.dumps([int(seed), purpose, *map(int, indices)])
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"))
