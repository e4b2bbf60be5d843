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
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Delete damaged checkpoints, and those that are not kept."),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="With --prune: how many stay (default: the run's save_total_limit)."),
    ] = None,
) -> None:
    """List the checkpoints in OUTPUT_DIR: step, time, loss, size, framework, ranks, format and state.

    Raises:
        CheckpointError: there is no such directory; or, with `--prune`, a job is writing there.
        typer.Exit: with status 1 when `--verify` finds damage.
    """
    from dataclasses import asdict

    from hvdtrain.core import strict_json
    from hvdtrain.core.checkpoints.listing import list_checkpoints, print_checkpoints
    from hvdtrain.core.errors import CheckpointError
    from hvdtrain.core.process.paths import user_path
    from hvdtrain.core.run.pruning import prune as run_prune

    directory = user_path(output_dir, "OUTPUT_DIR", CheckpointError)
    if prune and (verify or json):
        raise CheckpointError(
            "--prune reads every byte itself, and prints what it deletes: leave --verify and --json out"
        )
    if prune:
        run_prune(directory, keep, typer.echo)
        return
    if keep is not None:
        raise CheckpointError("--keep goes with --prune")
    found = list_checkpoints(directory, verify)
    if json:
        typer.echo(strict_json.dumps([asdict(each) for each in found], indent=2))
    elif found:
        print_checkpoints(found, f"checkpoints in {directory}")
    else:
        typer.echo(f"{directory}: no checkpoints; checkpointing.save_steps makes them")
    if verify and any(each.problem for each in found):
        raise typer.Exit(1)
