"""Step times of this project's optimizer wrappers beside stock Horovod's, in the same loop, turn by turn.

    python benchmarks/wrappers.py

The same BERT, batches and optimizer on 2 ranks of one thread each. See docs/benchmarks.md.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from side_by_side.comparing import compare
from side_by_side.competitors import Framework, Model, model_spec, wrappers

from hvdtrain.core.errors import HvdtrainError
from hvdtrain.core.run.job import prepare_data

# Frameworks whose `side_by_side` steps have a `wrapper`.
_FRAMEWORKS: tuple[Framework, ...] = ("torch", "tensorflow")


def compare_wrappers(
    *,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each competitor.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of a turn.")] = 8,
    medium: Annotated[bool, typer.Option(help="Train the larger model.")] = False,
) -> None:
    """Measure the step times of the wrappers, taking turns."""
    console = Console()
    size: Model = "medium" if medium else "default"
    try:
        prepare_data(model_spec(size), announce=console.print)
        for framework in _FRAMEWORKS:
            compare(wrappers(framework), size, rounds, steps, console)
    except HvdtrainError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    typer.run(compare_wrappers)
