"""The largest resident memory of a rank, beside the peak that the plan says.

    python benchmarks/peak_memory.py --jobs bert,bert-109m --ranks 1,2

Trains a few updates of each job, evaluates, and saves one checkpoint. The peak is `VmHWM`
of Linux' `/proc/PID/status`, of the rank that has most. See docs/troubleshooting.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.console import Console

from hvdtrain.core.run.output_dir import PLAN_FILE
from hvdtrain.core.tables import Kind, make_table, print_table

_POLL_S = 0.02
_MIB = 2**20


def _bert(width: int, layers: int, vocabulary: int, rows: int) -> tuple[str, ...]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    sizes |= {"num_hidden_layers": layers, "vocab_size": vocabulary}
    return *(f"model.{name}={size}" for name, size in sizes.items()), _rows(rows)


def _gpt2(width: int, layers: int, vocabulary: int, rows: int) -> tuple[str, ...]:
    sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "vocab_size": vocabulary}
    return *(f"model.{name}={size}" for name, size in sizes.items()), _rows(rows)


def _rows(rows: int) -> str:
    return f"batch.per_device_train_batch_size={rows}"


JOBS: dict[str, tuple[str, ...]] = {
    "bert": ("bert",),
    "bert-tiny": ("bert", *_bert(64, 1, 300, 1)),
    "bert-69m": ("bert", *_bert(640, 10, 30522, 2)),
    "bert-109m": ("bert", *_bert(768, 12, 30522, 2)),
    "bert-64-rows": ("bert", _rows(64)),
    "gpt2": ("gpt2",),
    "gpt2-tiny": ("gpt2", *_gpt2(64, 1, 300, 1)),
    "gpt2-60m": ("gpt2", *_gpt2(768, 8, 4096, 1)),
    "gpt2-60m-accumulated": ("gpt2", *_gpt2(768, 8, 4096, 1), "batch.gradient_accumulation_steps=2"),
    "gpt2-64-rows": ("gpt2", _rows(64)),
    "llama": ("llama",),
    "resnet": ("resnet",),
    "resnet-44m": (
        "resnet",
        "model.image_size=32",
        "model.embedding_size=64",
        "model.hidden_sizes=[128,256,512,1024]",
        "model.depths=[2,2,2,2]",
        _rows(64),
    ),
    "vit": ("vit",),
    "vit-14m": (
        "vit",
        "model.image_size=32",
        "model.patch_size=4",
        "model.hidden_size=384",
        "model.intermediate_size=1536",
        "model.num_attention_heads=6",
        "model.num_hidden_layers=8",
        _rows(64),
    ),
}


def compare_peaks(
    *,
    jobs: Annotated[str, typer.Option(help=f"Of {', '.join(JOBS)}, separated by commas.")] = ",".join(JOBS),
    frameworks: Annotated[str, typer.Option(help="Separated by commas.")] = "torch,tensorflow",
    ranks: Annotated[str, typer.Option(help="Numbers of ranks, separated by commas.")] = "1,2",
) -> None:
    """Compare the peaks of ranks with what plans say."""
    console, rows = Console(), []
    for job in jobs.split(","):
        for framework in frameworks.split(","):
            for count in ranks.split(","):
                spec, *settings = JOBS[job]
                peak, memory = measure(spec, framework, int(count), [*_FEW_UPDATES, *settings])
                planned = memory["peaks"][framework]["total"]
                share = f"{(planned - peak) / peak:+.1%}"
                rows.append(
                    (job, framework, count, f"{planned / _MIB:.0f} MiB", f"{peak / _MIB:.0f} MiB", share)
                )
                console.print(*rows[-1])
    columns: dict[str, Kind] = {"job": "name", "framework": "name", "ranks": "number"}
    columns |= dict.fromkeys(("planned", "measured", "difference"), "number")
    print_table(make_table(columns, rows, "the largest rank's peak of resident memory"), console)


_FEW_UPDATES = (
    "max_steps=3",
    "num_train_epochs=null",
    "schedule.warmup_ratio=null",
    "schedule.warmup_steps=1",
    "evaluation.eval_steps=2",
    "checkpointing.save_steps=2",
    "checkpointing.async_save=false",
    "data.validation_split=0.02",
    "logging.tensorboard=false",
)


def measure(
    spec: str, framework: str, ranks: int, settings: Sequence[str], env: Mapping[str, str] = os.environ
) -> tuple[int, dict[str, Any]]:
    """Run a job.

    Args:
        spec: a packaged spec or a file.
        framework: torch or tensorflow.
        ranks: how many.
        settings: what `--set` is given.
        env: of the job.

    Returns:
        The largest rank's peak of resident memory in bytes, and what `plan.json` says of memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        log, out = Path(folder) / "log.txt", Path(folder) / "out"
        command = [sys.executable, "-m", "hvdtrain.cli", "run", spec, "--framework", framework]
        command += ["-np", str(ranks), "--output-dir", str(out), *(f"--set={each}" for each in settings)]
        with log.open("wb") as opened:
            process = subprocess.Popen(command, stdout=opened, stderr=opened, env=env)
            peak = 0
            while process.poll() is None:
                peak = max(peak, _largest(process.pid))
                time.sleep(_POLL_S)
        if process.returncode:
            sys.exit(f"error: {' '.join(command)}:\n{log.read_text()[-3000:]}")
        return peak, json.loads((out / PLAN_FILE).read_text())["memory"]


def _largest(launcher: int) -> int:
    """The largest peak so far among a process' descendants."""
    found = [0]
    for child in psutil.Process(launcher).children(recursive=True):
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            continue
        found += [1024 * int(kib) for kib in re.findall(r"VmHWM:\s*(\d+) kB", status)]
    return max(found)


if __name__ == "__main__":
    typer.run(compare_peaks)
