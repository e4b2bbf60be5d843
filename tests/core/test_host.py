"""What a process keeps of the memory that it has given back."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Prints how many MiB of 6 blocks of 28 MiB each are still resident after they were freed.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from hvdtrain.core.process.host import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

keep_freed_memory(int(sys.argv[1]))
before = resident()
blocks = [np.ones(28 * 2**17) for _ in range(6)]
assert resident() - before > 150
del blocks
print(resident() - before)
"""


@pytest.mark.parametrize(("zero_stage", "kept"), [(0, True), (1, True), (2, False), (3, False)])
def test_large_blocks_go_back_where_ranks_hold_a_few_layers_at_a_time(zero_stage: int, kept: bool) -> None:
    command = [sys.executable, "-c", PROGRAM, str(zero_stage)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (float(done.stdout) > 100) == kept, done.stdout
