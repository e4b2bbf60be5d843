"""What saving checkpoints costs the training loop.

    python benchmarks/saving.py

A job saves after every other block of 20 updates. Blocks that follow a save are compared with those between
them that do not, so that what disturbs the machine disturbs both. Ranks have one thread each. See
docs/benchmarks.md.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import typer
from rich.console import Console

from hvdtrain.core.checkpoints.finding import LATEST_FILE
from hvdtrain.core.checkpoints.manifest import read_manifest
from hvdtrain.core.run.metrics import TENSORBOARD_DIR
from hvdtrain.core.tables import Kind, make_table, print_table

_BLOCK = 20
_MODELS: dict[str, tuple[str, ...]] = {
    "bert": (),
    # 30 million weights.
    "gpt2": ("model.n_layer=9", "model.n_embd=512", "model.n_head=8"),
}
_COMMON = (
    "schedule.type=constant",
    "schedule.warmup_ratio=null",
    "schedule.warmup_steps=0",
    "evaluation.eval_steps=null",
    "logging.tensorboard=true",
    "num_threads=1",
    f"checkpointing.save_steps={2 * _BLOCK}",
    "checkpointing.save_total_limit=2",
)
_COLUMNS: dict[str, Kind] = {
    " ": "name",
    "checkpoint": "number",
    "update": "number",
    "saving every 20 updates": "number",
    "95 % interval": "number",
}


def measure_saving(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks with a save, and as many without.")] = 10,
    ranks: Annotated[int, typer.Option(min=1, help="1 leaves a core of two to the thread that writes.")] = 2,
    model: Annotated[str, typer.Option(help="bert or gpt2.")] = "bert",
    framework: Annotated[str, typer.Option(help="torch or tensorflow.")] = "torch",
    folder: Annotated[Path | None, typer.Option(help="Where checkpoints are written.")] = None,
) -> None:
    """Measure what a save costs, in the background and while training waits."""
    rows = []
    for name, in_background in (("in the background", "true"), ("training waits", "false")):
        with tempfile.TemporaryDirectory(dir=folder) as place:
            sets = (f"checkpointing.async_save={in_background}", f"max_steps={2 * _BLOCK * (rounds + 1)}")
            _train(framework, model, ranks, Path(place), (*_COMMON, *_MODELS[model], *sets))
            rows.append((name, *_summary(Path(place), rounds)))
    title = f"{framework}, {model}, {ranks} ranks: what a save adds to 20 updates"
    console = Console()
    print_table(make_table(_COLUMNS, rows, title), console)


def _train(framework: str, model: str, ranks: int, folder: Path, sets: Sequence[str]) -> None:
    command = [sys.executable, "-m", "hvdtrain.cli", "run", model, "--framework", framework]
    command += ["-np", str(ranks), "--output-dir", str(folder), *(f"--set={each}" for each in sets)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the job ended:\n{done.stderr[-3000:]}")


def _summary(folder: Path, rounds: int) -> tuple[str, ...]:
    times = _times(folder)
    saving, plain = [], []
    for number in range(rounds):
        # The first block compiles. After a multiple of two blocks a checkpoint is saved.
        start, middle, end = (times[2 * _BLOCK * (number + 1) + i * _BLOCK - _BLOCK] for i in range(3))
        plain.append(middle - start)
        saving.append(end - middle)
    manifest = read_manifest(folder / (folder / LATEST_FILE).read_text().strip())
    assert manifest is not None
    size = sum(file.size for file in manifest.files.values())
    return (
        f"{size / 2**20:.1f} MiB",
        f"{1e3 * median(plain) / _BLOCK:.1f} ms",
        f"{_added(saving, plain):+.2f} %",
        "{:+.1f} to {:+.1f} %".format(*_interval(saving, plain)),
    )


def _added(saving: Sequence[float], plain: Sequence[float]) -> float:
    """By how many per cent the median of blocks with a save is above that of blocks without."""
    return 100.0 * (median(saving) / median(plain) - 1.0)


def _interval(saving: Sequence[float], plain: Sequence[float]) -> tuple[float, float]:
    """The interval of `_added` by the percentile bootstrap: 2000 draws of as many rounds with replacement."""
    draw, rounds = random.Random(0), range(len(plain))
    draws = ([draw.choice(rounds) for _ in rounds] for _ in range(2000))
    found = [_added([saving[i] for i in those], [plain[i] for i in those]) for those in draws]
    cuts = quantiles(found, n=40)
    return cuts[0], cuts[-1]


def _times(folder: Path) -> dict[int, float]:
    """When each update was done, by its number."""
    # TensorBoard imports it, and it tells of the processor.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / TENSORBOARD_DIR), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.wall_time for event in events.Scalars("loss")}


if __name__ == "__main__":
    typer.run(measure_saving)
