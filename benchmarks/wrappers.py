"""Step times of this project's optimizer wrappers beside stock Horovod's, in the same loop, turn by turn.

    python benchmarks/wrappers.py

The same BERT, batches and optimizer on 2 ranks of one thread each. See docs/benchmarks.md.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from side_by_side.competitors import Framework, Model, model_spec, wrappers
from side_by_side.conductor import take_turns
from side_by_side.results import as_table, summarise

from hvdtrain.core.errors import HvdtrainError
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.tables import print_table

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
            with tempfile.TemporaryDirectory() as folder:
                turns = take_turns(wrappers(framework), size, rounds, steps, Path(folder), console.print)
                results = summarise([*turns])
            print_table(as_table(f"{framework} {version(framework)}: {size} BERT", results), console)
    except HvdtrainError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    typer.run(compare_wrappers)
