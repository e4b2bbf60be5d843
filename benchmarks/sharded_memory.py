"""Resident memory of a rank with each `zero_stage`, beside what the plan says.

    python benchmarks/sharded_memory.py --layers 8 --width 768

Trains a few updates of a GPT-2. What a rank of a tiny model has resident is taken for
what the framework itself needs. Freed blocks of 1 MiB and more go back to the system, so
that what is resident is what is in use. See docs/sharding.md.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer
from peak_memory import measure
from rich.console import Console

from hvdtrain.core.tables import Kind, make_table, print_table

_MIB = 2**20


def measure_memory(
    *,
    framework: Annotated[str, typer.Option(help="torch or tensorflow.")] = "torch",
    ranks: Annotated[int, typer.Option("-np", min=1, help="Ranks.")] = 2,
    layers: Annotated[int, typer.Option(min=1, help="n_layer.")] = 8,
    width: Annotated[int, typer.Option(min=64, help="n_embd, a multiple of 64.")] = 768,
    vocabulary: Annotated[int, typer.Option(min=300, help="vocab_size.")] = 4096,
    stages: Annotated[str, typer.Option(help="Stages, separated by commas.")] = "0,1,2,3",
    updates: Annotated[int, typer.Option(min=1, help="Updates of each run.")] = 4,
) -> None:
    """Measure what ranks have resident."""
    model, tiny = (layers, width, vocabulary), (1, 64, 300)
    console, rows = Console(), []
    own, _ = _run(framework, ranks, tiny, 0, updates)
    for stage in stages.split(","):
        peak, planned = _run(framework, ranks, model, int(stage), updates)
        rows.append(
            (stage, f"{planned / _MIB:.0f} MiB", f"{(peak - own) / _MIB:.0f} MiB", f"{peak / _MIB:.0f} MiB")
        )
        console.print(f"zero_stage {stage} is done")
    columns: dict[str, Kind] = {
        "zero_stage": "name",
        "planned": "number",
        "peak less its own": "number",
        "peak": "number",
    }
    print_table(make_table(columns, rows, f"{framework}, {ranks} ranks: the largest rank's memory"), console)


def _run(
    framework: str, ranks: int, model: tuple[int, int, int], stage: int, updates: int
) -> tuple[int, int]:
    """The largest rank's peak of resident memory, and what the plan says, in bytes."""
    layers, width, vocabulary = model
    settings = (
        f"model.n_layer={layers}",
        f"model.n_embd={width}",
        f"model.n_head={width // 64}",
        f"model.vocab_size={vocabulary}",
        f"zero_stage={stage}",
        f"max_steps={updates}",
        "schedule.warmup_ratio=null",
        "schedule.warmup_steps=1",
        "evaluation.eval_steps=null",
        "logging.tensorboard=false",
        "batch.per_device_train_batch_size=1",
        "num_threads=1",
        "data.validation_split=0.01",
    )
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(_MIB)}
    peak, memory = measure("gpt2", framework, ranks, settings, env)
    return peak, memory["total"]


if __name__ == "__main__":
    typer.run(measure_memory)
