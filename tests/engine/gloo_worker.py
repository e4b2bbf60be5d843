"""gloo_worker.py sums FOLDER | cpu: what Gloo makes of few bytes, and of a core that its threads share."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np

# At and beyond what is exchanged instead of passed around a ring, in float32, by 2 ranks and by more.
SIZES = (1, 3, 4096, 4097, 65536, 65537)
# What 300 allreduces of 300 kB may cost. Threads that get in each other's way take two to four times that.
MOST_SECONDS = 0.45


def numbers(size: int, rank: int) -> np.ndarray:
    """Whole numbers, whose sums are exact in any order, and here and there every rank's own NaN."""
    array = np.random.default_rng([size, rank]).integers(-1000, 1000, size).astype(np.float32)
    array[::7].view(np.uint32)[:] = 0x7FC00001 + rank
    return array


def sums(folder: Path) -> None:
    """Each rank leaves RANK.npz."""
    found = {}
    for size in SIZES:
        array = torch.from_numpy(numbers(size, hvd.rank()))
        found[str(size)] = hvd.allreduce(array, op=hvd.Sum, name=str(size)).numpy()
    np.savez(folder / f"{hvd.rank()}.npz", **found)


def cpu() -> None:
    """Sums around a ring, with all threads of a rank on one core."""
    array = torch.ones(75_000)
    for _ in range(20):
        hvd.allreduce_(array, op=hvd.Min, name="array")
    before = time.process_time()
    for _ in range(300):
        hvd.allreduce_(array, op=hvd.Min, name="array")
    used = time.process_time() - before
    print(f"{used:.2f} s of CPU")
    assert used < MOST_SECONDS


if __name__ == "__main__":
    if sys.argv[1] == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["HOROVOD_RANK"]) % len(cores)]})
    import horovod.torch as hvd
    import torch

    hvd.init()
    torch.set_num_threads(1)
    cpu() if sys.argv[1] == "cpu" else sums(Path(sys.argv[2]))
    hvd.shutdown()
