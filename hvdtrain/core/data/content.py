"""What a user's dataset holds, in few words: what ranks compare before they train on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hvdtrain.core.data.samples import Samples
from hvdtrain.core.data.seeding import generators_kept, seed_generators
from hvdtrain.core.data.values import Arrays
from hvdtrain.core.data.workers import Workers

_MOST_READ = 32


@dataclass(frozen=True, eq=False)
class Content:
    """A look at a dataset.

    Attributes:
        empty: as `Samples.empty`.
        facts: number of samples, dtype and shape of each array of sample 0, and a hash of evenly spaced
            samples; the hash is left out where reading a sample twice gives two things.
    """

    empty: Arrays
    facts: Mapping[str, Any]


def look(workers: Workers[tuple[Samples, ...]], which: int, count: int) -> Content:
    """Read a few samples of one of the workers' datasets.

    Args:
        workers: which read them.
        which: of the datasets.
        count: its length.

    Raises:
        DataError: as `Samples.draw`.
    """
    arrive = workers.start(_empty, which)
    indices = np.unique(np.linspace(0, count - 1, _MOST_READ).astype(np.int64))
    hashes = [workers.start(_hash, which, int(index)) for index in indices]
    empty = arrive()
    arrays = {name: f"{array.dtype} {array.shape[1:]}" for name, array in empty.items()}
    facts = {"samples": count, "arrays": arrays}
    found = [each() for each in hashes]
    return Content(empty, facts | ({"content": fingerprint({"hashes": found})} if all(found) else {}))


def fingerprint(facts: Mapping[str, Any]) -> str:
    """A hash of JSON-ready facts."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _empty(sources: tuple[Samples, ...], which: int) -> Arrays:
    with generators_kept():
        seed_generators(0, which)
        return sources[which].empty


def _hash(sources: tuple[Samples, ...], which: int, index: int) -> str | None:
    """Of one sample; None where reading it twice gives two things."""
    with generators_kept():
        # What is drawn from the global generators is equal then on all ranks, and when a run is resumed.
        before = partial(seed_generators, 0, which)
        first, second = (_bytes(sources[which].draw(np.array([index]), before)) for _ in range(2))
    return hashlib.blake2b(first, digest_size=16).hexdigest() if first == second else None


def _bytes(arrays: Arrays) -> bytes:
    return b"".join(
        f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes()
        for name, array in sorted(arrays.items())
    )
