"""`hvdtrain checkpoints`: what a run has kept to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def checkpoints(
    output_dir: Annotated[Path, typer.Argument(help="A job's output directory.")],
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte; status 1 when something is wrong.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the checkpoints in OUTPUT_DIR: step, time, loss, size, framework, ranks, format and state.

    Raises:
        CheckpointError: there is no such directory.
        typer.Exit: with status 1 when `--verify` finds damage.
    """
    from dataclasses import asdict

    from hvdtrain.core import strict_json
    from hvdtrain.core.checkpoints.listing import list_checkpoints, print_checkpoints
    from hvdtrain.core.errors import CheckpointError
    from hvdtrain.core.process.paths import user_path

    directory = user_path(output_dir, "OUTPUT_DIR", CheckpointError)
    found = list_checkpoints(directory, verify)
    if json:
        typer.echo(strict_json.dumps([asdict(each) for each in found], indent=2))
    elif found:
        print_checkpoints(found, f"checkpoints in {directory}")
    else:
        typer.echo(f"{directory}: no checkpoints; checkpointing.save_steps makes them")
    if verify and any(each.problem for each in found):
        raise typer.Exit(1)
