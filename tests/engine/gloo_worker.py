"""gloo_worker.py sums FOLDER | core: what Gloo makes of few bytes, and of a core that its threads share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

# At and beyond what is exchanged instead of passed around a ring, in float32, by 2 ranks and by more.
SIZES = (1, 3, 4096, 4097, 65536, 65537)
# How many times the CPU of the thread that sends the one that receives may take. They take about the same;
# where the receiving one asks for a held lock without pause it takes four to nine times as much.
MOST = 2.0


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


def core() -> None:
    """Sums around a ring, with all threads of a rank on one core."""
    array = torch.ones(75_000)
    for _ in range(20):
        hvd.allreduce_(array, op=hvd.Min, name="array")
    before = seconds_of_threads()
    for _ in range(300):
        hvd.allreduce_(array, op=hvd.Min, name="array")
    used = [seconds - before.get(thread, 0.0) for thread, seconds in seconds_of_threads().items()]
    most, next_most, *_ = sorted(used, reverse=True)
    assert most < MOST * next_most, f"{most} and {next_most} s of CPU"


def seconds_of_threads() -> dict[str, float]:
    """The CPU that each thread of this process has had."""
    tasks = Path("/proc/self/task").iterdir()
    return {task.name: 1e-9 * int((task / "schedstat").read_text().split()[0]) for task in tasks}


if __name__ == "__main__":
    if sys.argv[1] == "core":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["HOROVOD_RANK"]) % len(cores)]})
    import horovod.torch as hvd
    import torch

    hvd.init()
    torch.set_num_threads(1)
    core() if sys.argv[1] == "core" else sums(Path(sys.argv[2]))
    hvd.shutdown()
