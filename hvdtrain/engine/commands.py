"""`hvdtrain engine build`, `hvdtrain engine info` and `hvdtrain doctor`."""

from __future__ import annotations

import json as json_
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

engine_app = typer.Typer(
    help="Build Horovod for the installed frameworks, or say what is built.", rich_markup_mode=None
)


@engine_app.command()
def build(
    install: Annotated[
        bool, typer.Option("--install", help="Install the wheel beside this Python, unless it is there.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even when the cache has this build.")] = False,
    sdist: Annotated[
        Path | None, typer.Option(help="Horovod's source distribution; fetched with pip when not given.")
    ] = None,
    mpi: Annotated[bool, typer.Option(help="Build MPI support when mpicxx is there.")] = True,
) -> None:
    """Builds the Horovod wheel for the installed torch and TensorFlow, unless the cache has it."""
    from hvdtrain.core.errors import EngineError
    from hvdtrain.core.process.paths import user_path
    from hvdtrain.engine import build as builder
    from hvdtrain.engine.versions import find_versions

    source = user_path(sdist, "--sdist", EngineError) if sdist else None
    wheel = builder.build(find_versions(with_mpi=mpi), _say, source, force)
    installed = install and builder.install(wheel)
    _say(f"{'built' if wheel.built_now else 'built before'}: {wheel.path}")
    if install:
        _say("installed it" if installed else "it is installed already")


@engine_app.command()
def info() -> None:
    """Prints as JSON what a build would be for, its name in the cache, and what is installed."""
    from hvdtrain.engine.cache import build_key, cached_wheel, installed_horovod
    from hvdtrain.engine.edits import edits_for
    from hvdtrain.engine.versions import find_versions

    versions = find_versions()
    key = build_key(versions)
    wheel, installed = cached_wheel(key), installed_horovod()
    report = {
        "versions": asdict(versions),
        "nccl_obstacle": versions.nccl_obstacle,
        "edits": {edit.name: edit.why for edit in edits_for(versions)},
        "key": key,
        "wheel": str(wheel) if wheel else None,
        "installed": asdict(installed) | {"path": str(installed.path)} if installed else None,
    }
    typer.echo(json_.dumps(report, indent=2))


def doctor(
    hostfile: Annotated[
        Path | None, typer.Option(help="Also check that each host in it can be reached over ssh.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Says what this machine has for training, what is missing and what to do about it."""
    from hvdtrain.engine.doctor import as_json, examine, print_table

    rows = examine(hostfile)
    if json:
        typer.echo(as_json(rows))
    else:
        print_table(rows)
    raise typer.Exit(int(any(row.status == "missing" for row in rows)))


def _say(line: str) -> None:
    typer.echo(f"[engine] {line}", err=True)
