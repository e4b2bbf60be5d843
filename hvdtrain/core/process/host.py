"""What the host offers a process: cores, instructions, memory that is kept."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_MIB = 2**20
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def usable_cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0))


def cpu_flags() -> frozenset[str]:
    """What this host's x86 CPU can do, as Linux names it; empty where that cannot be told."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def keep_freed_memory(zero_stage: int) -> None:
    """Have the C library keep what it is given back, for the next update needs as much again.

    Blocks of 32 MiB and more go back to the system at once. Where ranks hold gradients or weights of a few
    layers at a time (`zero_stage` 2 and 3), blocks of 20 MiB do so, or a process would keep what sharding
    saves. `MALLOC_MMAP_THRESHOLD_` in the environment says another size, in bytes. Where the library is not
    glibc, nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # Without these, the system maps and clears the memory of the activations again in each update.
        if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
            mallopt(_M_MMAP_THRESHOLD, (20 if zero_stage >= 2 else 32) * _MIB)
        mallopt(_M_TRIM_THRESHOLD, 1024 * _MIB)
        # A thread's own arena gives blocks of tens of MiB back whatever the threshold: an update of 28
        # million weights took TensorFlow an eighth longer.
        mallopt(_M_ARENA_MAX, 1)
