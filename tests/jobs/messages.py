"""messages.py FRAMEWORK FOLDER: ranks send each other more bytes than Horovod can count in an int."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.runs import start_sooner

BYTES = 2**31 + 24


def main(name: str, folder: str) -> None:
    framework = importlib.import_module(f"hvdtrain.{name}.job").load()
    ranks = framework.init(load_spec("bert"))
    mine = np.full(BYTES, 1 + ranks.rank, np.uint8)
    if ranks.is_chief:
        mine[[0, BYTES // 2, -1]] = 7, 8, 9
    found = ranks.broadcast(mine)
    assert (found.shape, found.dtype) == (mine.shape, mine.dtype)
    assert found[[0, BYTES // 2, -1]].tolist() == [7, 8, 9]
    # In parts, each of which is compared in little memory.
    assert sum(int(np.count_nonzero(part != 1)) for part in np.array_split(found, 64)) == 3
    del found
    # As the moments of one weight: of each rank its own.
    mine = mine.view(np.float32)
    mine.fill(1 + ranks.rank)
    mine[-1] = 100 * ranks.rank
    found = ranks.sum(mine)
    assert (found.shape, found.dtype) == (mine.shape, mine.dtype)
    assert found[-1] == 100 * sum(range(ranks.size))
    total = sum(range(1, 1 + ranks.size))
    assert all((part == total).all() for part in np.array_split(found[:-1], 64))
    (Path(folder) / f"{ranks.rank}").touch()
    framework.shutdown()


if __name__ == "__main__":
    start_sooner()
    main(*sys.argv[1:])
