"""How fast policies compress and decompress, beside memcpy and the compression of PyTorch's DDP hooks.

One process, one thread, no communication: collectives are answered at once as if there were two equal ranks.
All take turns in one run. PyTorch is tried on a GPU where there is one. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import typer
from codec_subjects import (
    FIRST_UPDATE,
    RANKS,
    Timed,
    gpu_memcpy,
    memcpy,
    tensorflow_codec,
    torch_codec,
    torch_hooks,
)
from rich.console import Console
from rich.table import Table

from hvdtrain.core.compression import POLICIES, Bf16
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.families import bert
from hvdtrain.core.families.bert import ModelSpec
from hvdtrain.core.process.host import keep_freed_memory
from hvdtrain.core.tables import Kind, make_table, print_table
from hvdtrain.core.update.buckets import Bucket, plan_buckets

_MIB = 2**20
_BUSY = 0.5


class Framework(StrEnum):
    """Whose array verbs a policy uses."""

    TORCH = "torch"
    TENSORFLOW = "tensorflow"


@dataclass(frozen=True)
class Result:
    """What was measured of one codec.

    Attributes:
        name: the policy.
        framework: whose verbs it used.
        ms: median time to compress and decompress the bucket.
        gb_per_s: bytes of the uncompressed bucket per such time, in 10^9 a second.
        of_memcpy: its rate over memcpy's in the same round, the median over rounds.
        of_hook: its time over that of PyTorch's hook, likewise; None where there is no such hook.
    """

    name: str
    framework: str
    ms: float
    gb_per_s: float
    of_memcpy: float
    of_hook: float | None


def codecs(
    *,
    mib: Annotated[float, typer.Option(min=0.01, help="Largest size of the bucket, of float32.")] = 25.0,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each codec.")] = 15,
    only: Annotated[Framework | None, typer.Option(help="One framework alone.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="These policies alone.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure every policy's codec, taking turns."""
    keep_freed_memory()
    # As wide as its table, also where the output goes into a file.
    console = Console(width=100)
    load = os.getloadavg()[0]
    bucket = bert_bucket(mib * _MIB)
    chosen = {name: one for name, one in _lossy(bucket).items() if not policy or one.type in policy}
    gradients = np.random.default_rng(0).normal(0.0, 1e-3, bucket.size).astype(np.float32)
    frameworks = [only] if only else list(Framework)
    copy, where = _memory(frameworks)
    timed: dict[tuple[str, str], Timed] = {("memcpy", "memcpy"): copy(gradients)}
    for framework in frameworks:
        codec = {Framework.TORCH: torch_codec, Framework.TENSORFLOW: tensorflow_codec}[framework]
        for name, one in chosen.items():
            timed[name, framework.value] = codec(one, bucket, gradients)
        if framework is Framework.TORCH:
            hooks = torch_hooks(bucket, gradients)
            timed |= {(name, "hook"): hooks[name] for name in chosen if name in hooks}
    with console.status("") as status:
        seconds = _take_turns(timed, rounds, status.update)
    results = [_result(name, framework, seconds, gradients.nbytes) for name, framework in timed]
    print_table(as_table(results, bucket), console)
    if json_file:
        record = {"bytes": gradients.nbytes, "rounds": rounds, "load": load}
        found = {**record, "results": [asdict(result) for result in results]}
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    noisy = f" Other programs were running (load {load:.1f} at the start)." if load > _BUSY else ""
    versions = ", ".join(f"{name} {version(name)}" for name in (*frameworks, "numpy"))
    console.print(f"Measured on {where}: {rounds} turns of each, one thread, medians; {versions}.{noisy}")


def _memory(frameworks: list[Framework]) -> tuple[Callable[[np.ndarray], Timed], str]:
    """How to copy in the memory that gradients lie in, and whose it is."""
    if frameworks == [Framework.TORCH]:
        import torch

        if torch.cuda.is_available():
            return gpu_memcpy, torch.cuda.get_device_name()
    return memcpy, "the CPU"


def bert_bucket(cap_bytes: float) -> Bucket:
    """The fullest bucket of BERT base's plan at this cap."""
    buckets = plan_buckets(bert.weights(ModelSpec()), 4, cap_bytes)
    return max((b for b in buckets if 4 * b.size <= cap_bytes), key=lambda b: b.size, default=buckets[0])


def _lossy(bucket: Bucket) -> dict[str, Policy]:
    """Every registered policy that sends gradients as something else than they are, and what a hook does."""
    every = {one.type: one for one in (policy() for policy in POLICIES)}
    every["bf16, no feedback"] = Bf16(use_error_feedback=False)
    sizes = {name: one.at(FIRST_UPDATE).wire_bytes(bucket, 4, RANKS) for name, one in every.items()}
    return {name: every[name] for name, size in sizes.items() if size not in (0, 4 * bucket.size)}


def _take_turns(
    timed: dict[tuple[str, str], Timed], rounds: int, say: Callable[[str], None]
) -> dict[tuple[str, str], list[float]]:
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    # The first turns compile, or let a hook warm up.
    for number in range(-3, rounds):
        for key, once in timed.items():
            say(f"round {number + 1} of {rounds}: {key[0]}, {key[1]}")
            took = once()
            if number >= 0:
                seconds[key].append(took)
    return seconds


def _result(name: str, framework: str, seconds: dict[tuple[str, str], list[float]], size: int) -> Result:
    own, copies = seconds[name, framework], seconds["memcpy", "memcpy"]
    hook = seconds.get((name.partition(",")[0], "hook"))
    return Result(
        name=name,
        framework=framework,
        ms=1e3 * median(own),
        gb_per_s=size / median(own) / 1e9,
        of_memcpy=median(c / o for o, c in zip(own, copies, strict=True)),
        of_hook=median(o / h for o, h in zip(own, hook, strict=True)) if hook else None,
    )


def as_table(results: list[Result], bucket: Bucket) -> Table:
    """Results as a table, memcpy first."""
    size = f"{4 * bucket.size / _MIB:.1f} MiB of float32 in {len(bucket.weights)} weights"
    numbers = ("time", "GB/s", "of memcpy's rate", "of hook's time")
    columns: dict[str, Kind] = {"codec": "name", "in": "name", **dict.fromkeys(numbers, "number")}
    rows = []
    for r in sorted(results, key=lambda r: (r.framework != "memcpy", r.name)):
        hook = "-" if r.of_hook is None or r.framework == "hook" else f"{r.of_hook:.2f}"
        time = f"{r.ms:.2g} ms" if r.ms < 10 else f"{r.ms:.0f} ms"
        rows.append((r.name, r.framework, time, f"{r.gb_per_s:.2f}", f"{r.of_memcpy:.2f}", hook))
    return make_table(columns, rows, f"compress + decompress, {size}")


if __name__ == "__main__":
    typer.run(codecs)
