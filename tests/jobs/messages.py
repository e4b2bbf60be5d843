"""messages.py FRAMEWORK FOLDER: ranks send each other more bytes than Horovod can count in an int."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

from hvdtrain.core.run import ranks as ranks_module
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
    del mine, found
    # Loops of a user's own have functions of Horovod's names.
    given, root = np.arange(BYTES if name == "torch" else 4096, dtype=np.uint8), ranks.size - 1
    ours = importlib.import_module(f"hvdtrain.{name}")
    if name == "torch":
        tensor = importlib.import_module("torch").from_numpy(given if ranks.rank == root else 0 * given)
        ours.broadcast_parameters({"weight": tensor}, root)
        assert tensor.numpy()[-5:].tolist() == given[-5:].tolist()
    else:
        # In pieces of another length: a tensor, an array and the bytes of so much do not fit at a time.
        ranks_module.MESSAGE_BYTES = 1000
        variable = importlib.import_module("tensorflow").Variable(given * (ranks.rank == root))
        ours.broadcast_variables([variable], root)
        assert (variable.numpy() == given).all()
    (Path(folder) / f"{ranks.rank}").touch()
    framework.shutdown()


if __name__ == "__main__":
    start_sooner()
    main(*sys.argv[1:])
