"""Step times with each `zero_stage`, beside PyTorch's FSDP2, turn by turn.

    python benchmarks/sharding.py

The same model, batches and optimizer on 2 ranks of one thread each. See docs/benchmarks.md.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from side_by_side.comparing import compare
from side_by_side.competitors import Framework, Model, model_spec, sharded

from hvdtrain.core.errors import HvdtrainError
from hvdtrain.core.run.job import prepare_data

_FRAMEWORKS: tuple[Framework, ...] = ("torch", "tensorflow")
_MODELS: tuple[Model, ...] = ("default", "gpt2")


def compare_stages(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each competitor.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of a turn.")] = 8,
    torch_alone: Annotated[bool, typer.Option("--torch", help="PyTorch alone.")] = False,
) -> None:
    """Measure the step times of the stages, taking turns."""
    console = Console()
    try:
        for model in _MODELS:
            prepare_data(model_spec(model), announce=console.print)
            for framework in _FRAMEWORKS[: 1 if torch_alone else None]:
                compare(sharded(framework), model, rounds, steps, console)
    except HvdtrainError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    typer.run(compare_stages)
