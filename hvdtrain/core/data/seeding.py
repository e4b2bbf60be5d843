"""The global random generators that a user's dataset may draw from."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from hvdtrain.core.random import random_words


def seed_generators(seed: int, *indices: int) -> None:
    """Seed the global generators of Python, NumPy and, where it is imported, PyTorch (on the CPU).

    Args:
        seed: the job's seed.
        *indices: what the random numbers are for, such as epoch and sample; any integers.
    """
    word = int(random_words(1, seed, "sample", *indices)[0])
    random.seed(word)
    np.random.seed(word % 2**32)
    if (torch := _torch()) is not None:
        # torch.manual_seed would seed the generators of GPUs as well, which a worker must not touch.
        torch.default_generator.manual_seed(word)


def read_generators() -> dict[str, np.ndarray]:
    """The states of Python's and NumPy's global generators, by name, as numbers alone."""
    _, python, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    rest = [numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]]
    return {
        "python": np.array(python, np.int64),
        "python_gauss": np.array([np.nan if gauss is None else gauss]),
        "numpy": numpy["state"]["key"].astype(np.int64),
        "numpy_rest": np.array(rest, np.float64),
    }


def write_generators(states: Mapping[str, np.ndarray]) -> None:
    """Set what `read_generators` has read."""
    gauss = float(states["python_gauss"][0])
    random.setstate((3, tuple(states["python"].tolist()), None if np.isnan(gauss) else gauss))
    pos, has_gauss, last = states["numpy_rest"].tolist()
    np.random.set_state(("MT19937", states["numpy"].astype(np.uint32), int(pos), int(has_gauss), last))


@contextmanager
def generators_kept() -> Iterator[None]:
    """Give the global generators the state back that they had."""
    torch = _torch()
    python, numpy = random.getstate(), np.random.get_state()
    own = torch.default_generator.get_state() if torch is not None else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.default_generator.set_state(own)


def _torch() -> Any:
    # Nothing can draw from it before it is imported, and this package imports no framework.
    return sys.modules.get("torch")
