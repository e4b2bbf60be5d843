"""A table of competitors that took turns."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from hvdtrain.core.tables import print_table
from side_by_side.competitors import Competitor, Model
from side_by_side.conductor import take_turns
from side_by_side.results import as_table, summarise


def compare(of: Sequence[Competitor], model: Model, rounds: int, steps: int, console: Console) -> None:
    """Have competitors of one framework train, taking turns, and print their step times.

    Args:
        of: the competitors; ratios are to the first.
        model: what they train.
        rounds: turns of each competitor.
        steps: timed steps of a turn.
        console: for what goes on, and for the table.
    """
    framework = of[0].framework
    with tempfile.TemporaryDirectory() as folder:
        results = summarise([*take_turns(of, model, rounds, steps, Path(folder), console.print)])
    name = "the packaged GPT-2" if model == "gpt2" else f"{model} BERT"
    print_table(as_table(f"{framework} {version(framework)}: {name}", results), console)
