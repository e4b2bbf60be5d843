"""Step times of this project's Trainers beside stock Horovod, PyTorch DDP and MultiWorkerMirroredStrategy.

All train the same BERT on the same batches with the same optimizer, 2 ranks of one thread each, in turns of
one run. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from side_by_side.competitors import RANKS, Framework, Model, competitors, model_spec
from side_by_side.conductor import take_turns
from side_by_side.results import Result, as_table, summarise

from hvdtrain.core.errors import HvdtrainError
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.tables import print_table
from hvdtrain.launch.processes import handle_signals

_BUSY = 0.5


class OnlyFramework(StrEnum):
    """One framework's competitors."""

    TORCH = "torch"
    TENSORFLOW = "tensorflow"


class OnlyModel(StrEnum):
    """One model."""

    DEFAULT = "default"
    MEDIUM = "medium"


def step_time(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each competitor.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of a turn.")] = 8,
    only: Annotated[OnlyFramework | None, typer.Option(help="One framework alone.")] = None,
    model: Annotated[OnlyModel | None, typer.Option(help="One model alone.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Measure step times of all competitors, taking turns."""
    # Ended by kill as by Ctrl-C: through the clean-up, which ends the stopped ranks too.
    handle_signals([signal.SIGTERM], lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    load = os.getloadavg()[0]
    frameworks: list[Framework] = [only.value] if only else ["torch", "tensorflow"]
    models: list[Model] = [model.value] if model else ["default", "medium"]
    measured: list[dict[str, Any]] = []
    try:
        for size in models:
            spec = model_spec(size)
            prepare_data(spec, announce=console.print)
            for framework in frameworks:
                results = _measure(framework, size, rounds, steps, console)
                title = (
                    f"{framework} {version(framework)}: {size} BERT, {spec.model.num_hidden_layers} x "
                    f"{spec.model.hidden_size}, vocabulary {spec.model.vocab_size}"
                )
                print_table(as_table(title, results), console)
                measured.append(
                    {"framework": framework, "model": size, "results": [r.as_dict() for r in results]}
                )
    except HvdtrainError as error:
        sys.exit(f"error: {error}")
    if json_file:
        record = {"rounds": rounds, "steps": steps, "ranks": RANKS, "load": load, "measured": measured}
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(_closing_line(rounds, steps, load))


def _measure(framework: Framework, model: Model, rounds: int, steps: int, console: Console) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder, console.status("") as status:

        def say(text: str) -> None:
            status.update(f"{framework}, {model} BERT: {text}")

        turns = list(take_turns(competitors(framework), model, rounds, steps, Path(folder), say))
    return summarise(turns)


def _closing_line(rounds: int, steps: int, load: float) -> str:
    noisy = (
        f" Other programs were running (load {load:.1f} at the start): the figures are noisy."
        if load > _BUSY
        else ""
    )
    return (
        "Measured: wall time of a whole update (forward, backward, reduction, clipping, AdamW), "
        f"{RANKS} ranks x 1 thread on {os.cpu_count()} cores: median of {rounds} rounds x {steps} steps, "
        "in turns of one run, without start-up and the first step of each turn; ratios are to hvdtrain (MPI) "
        f"in the same round.{noisy}"
    )


if __name__ == "__main__":
    typer.run(step_time)
