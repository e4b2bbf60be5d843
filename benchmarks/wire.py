"""How long Horovod takes to sum the same gradients as float32, float16 and bfloat16, over Gloo and over MPI.

The three take turns in one launch of 2 ranks a wire; no casts are timed. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from hvdtrain.core.process.environment import launched_rank
from hvdtrain.launch.commands import Launcher, LaunchRequest, Wire, build_command, choose_launch
from hvdtrain.launch.facts import find_facts
from hvdtrain.launch.hosts import is_local, parse_hosts

DTYPES = ("float32", "float16", "bfloat16")
_ROUNDS_BEFORE = 3


def wire(
    *,
    mib: Annotated[float, typer.Option(min=0.001, help="Size of the gradients in float32.")] = 25.0,
    rounds: Annotated[int, typer.Option(min=1, help="Timed sums of each type.")] = 30,
    hosts: Annotated[str, typer.Option("-H", "--hosts", help="Hosts and slots, as horovodrun has them.")] = (
        "localhost:2"
    ),
) -> None:
    """Measure allreduces of the three types, and print a table."""
    if launched_rank() is not None:
        _measure(int(mib * 2**20 / 4), rounds)
        return
    print(f"sum of {mib:g} MiB of float32 gradients and of as many 16-bit numbers on {hosts}")
    print(f"ms, median of {rounds}")
    print(f"{'':6}" + "".join(f"{dtype:>20}" for dtype in DTYPES))
    for name in (Wire.GLOO, Wire.MPI):
        found = _launch(name, hosts, ["--mib", str(mib), "--rounds", str(rounds)])
        medians = {dtype: median(times) for dtype, times in found.items()}
        cells = (f"{ms:.1f} ({ms / medians['float32']:.2f}x)" for ms in medians.values())
        print(f"{name:6}" + "".join(f"{cell:>20}" for cell in cells))


def _launch(name: Wire, hosts: str, options: list[str]) -> dict[str, list[float]]:
    chosen, facts = parse_hosts(hosts), find_facts("torch")
    request = LaunchRequest(
        (str(Path(__file__).resolve()), *options),
        chosen,
        is_local(chosen),
        str(Path.cwd()),
        Launcher.MPIRUN if name is Wire.MPI else Launcher.HOROVODRUN,
        name,
        env=dict(os.environ),
    )
    command = build_command(request, choose_launch(request, facts), facts)
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    answer = re.search(r"\{\"float32\".*\}", done.stdout)
    if done.returncode or answer is None:
        said = done.stdout[-2000:] + done.stderr[-2000:]
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}:\n{said}")
    return dict(json.loads(answer[0]))


def _measure(count: int, rounds: int) -> None:
    """What each rank runs; rank 0 prints the milliseconds of every sum by type."""
    import horovod.torch as hvd
    import torch

    hvd.init()
    torch.set_num_threads(1)
    gradients = torch.randn(count, generator=torch.Generator().manual_seed(hvd.rank()))
    arrays = {dtype: gradients.to(getattr(torch, dtype)) for dtype in DTYPES}
    found: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    for _ in range(_ROUNDS_BEFORE + rounds):
        for dtype, array in arrays.items():
            array.copy_(gradients)
            hvd.barrier()
            start = time.perf_counter()
            hvd.allreduce_(array, op=hvd.Sum, name=dtype)
            found[dtype].append(1000 * (time.perf_counter() - start))
    if hvd.rank() == 0:
        print(json.dumps({dtype: times[_ROUNDS_BEFORE:] for dtype, times in found.items()}), flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    typer.run(wire)
