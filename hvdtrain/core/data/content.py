"""What a user's data set holds, in few words: what ranks compare before they train on it."""

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

_MOST_READ = 32


@dataclass(frozen=True, eq=False)
class Content:
    """A look at a data set.

    Attributes:
        empty: as `Samples.empty`.
        facts: number of samples, dtype and shape of each array of sample 0, and a hash of evenly spaced
            samples; the hash is left out where reading a sample twice gives two things.
    """

    empty: Arrays
    facts: Mapping[str, Any]


def look(samples: tuple[Samples, ...], which: int) -> Content:
    """Read a few samples of one of several data sets.

    Raises:
        DataError: as `Samples.draw`.
    """
    found = samples[which]
    with generators_kept():
        seed_generators(0, which, 0)
        empty, content = found.empty, _hash_content(found, which)
    arrays = {name: f"{array.dtype} {array.shape[1:]}" for name, array in empty.items()}
    facts = {"samples": len(found), "arrays": arrays}
    return Content(empty, facts | ({"content": content} if content else {}))


def fingerprint(facts: Mapping[str, Any]) -> str:
    """A hash of JSON-ready facts."""
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _hash_content(samples: Samples, which: int) -> str | None:
    found = hashlib.blake2b(digest_size=16)
    for index in np.unique(np.linspace(0, len(samples) - 1, _MOST_READ).astype(np.int64)):
        # What is drawn from the global generators is equal then on all ranks, and when a run is resumed.
        before = partial(seed_generators, 0, which)
        first, second = (samples.draw(np.array([index]), before) for _ in range(2))
        if _bytes(first) != _bytes(second):
            return None
        found.update(_bytes(first))
    return found.hexdigest()


def _bytes(arrays: Arrays) -> bytes:
    return b"".join(
        f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes()
        for name, array in sorted(arrays.items())
    )
