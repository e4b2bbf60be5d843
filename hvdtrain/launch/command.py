"""`hvdtrain run`: a spec, started on as many ranks and hosts as asked for."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.commands import Launcher, LaunchRequest, Wire, build_command, choose_launch
from hvdtrain.launch.hosts import Host, format_hosts, is_local, parse_hostfile, parse_hosts, take_slots

if TYPE_CHECKING:
    from hvdtrain.launch.endings import Ending


class Framework(StrEnum):
    """The framework that trains."""

    TORCH = "torch"
    TENSORFLOW = "tensorflow"


def run(
    spec: Annotated[str, typer.Argument(help="YAML file or packaged spec, such as bert.")],
    *,
    framework: Annotated[Framework, typer.Option(help="Which framework trains it.")],
    np: Annotated[int, typer.Option("-np", "--num-proc", help="How many ranks.")],
    hostfile: Annotated[Path | None, typer.Option(help="Hosts, one `host slots=N` a line.")] = None,
    hosts: Annotated[str | None, typer.Option("-H", "--hosts", help="Hosts, as node1:2,node2:2.")] = None,
    launcher: Annotated[Launcher, typer.Option(help="What starts the ranks.")] = Launcher.AUTO,
    wire: Annotated[Wire, typer.Option(help="What the ranks talk over on CPUs.")] = Wire.AUTO,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where rank 0 writes.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on from this checkpoint-N directory; auto: from the newest whole one."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete a run that is there.")] = False,
    allow_change: Annotated[
        list[str] | None, typer.Option(help="FIELD.PATH that --resume may find changed.")
    ] = None,
    network_interface: Annotated[str | None, typer.Option(help="Between the hosts, such as eth0.")] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Start it again so often after a crash, from its last checkpoint.")
    ] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the launcher's command only.")] = False,
) -> None:
    """Train SPEC on -np ranks, here or on several hosts, with the fastest launcher at hand.

    Raises:
        SpecError: the spec or an override is bad; nothing was started.
        LaunchError: the hosts, the launcher or a path cannot be used; nothing was started.
        HvdtrainError: `check_job` found a fault; nothing was started.
        typer.Exit: with the status of the rank that failed first, if any did; 85 where ranks were told to
            stop, and can go on.
    """
    # These read the spec's schema and the installed Horovod: not for --help.
    from hvdtrain.core.process.paths import default_output_dir, user_path
    from hvdtrain.core.spec.job_spec import load_spec
    from hvdtrain.launch.facts import find_facts
    from hvdtrain.launch.preflight import check_job
    from hvdtrain.launch.restarts import run_with_restarts
    from hvdtrain.launch.run import run_command

    job = load_spec(spec, set_ or ())
    output_dir = output_dir and user_path(output_dir, "--output-dir", LaunchError)
    resume = resume and user_path(resume, "--resume", LaunchError)
    used = take_slots(_read_hosts(hostfile, hosts, np), np)

    def program(resume: Path | None, overwrite: bool) -> tuple[str, ...]:
        return _program(framework, spec, set_ or [], output_dir, resume, overwrite, allow_change or [])

    request = LaunchRequest(
        program=program(resume, overwrite),
        hosts=used,
        local=is_local(used),
        workdir=str(Path.cwd()),
        launcher=launcher,
        wire=wire,
        network_interface=network_interface,
        env=dict(os.environ),
    )
    facts = find_facts(framework)
    choice = choose_launch(request, facts)
    command = build_command(request, choice, facts)
    place = output_dir or default_output_dir(spec, framework)
    if not dry_run:
        check_job(job, used, place, resume, network_interface, overwrite)
    where = f"{np} rank{'s' if np > 1 else ''} on {format_hosts(used)}"
    print(f"hvdtrain: {where}, {choice.wire} by {choice.launcher} ({choice.why})", file=sys.stderr)
    if dry_run:
        typer.echo(shlex.join(command))
        return

    def start(resume: Path | None, overwrite: bool) -> Ending:
        again = replace(request, program=program(resume, overwrite))
        return run_command(build_command(again, choice, facts), os.environ)

    if status := run_with_restarts(start, place, resume, overwrite, max_restarts):
        raise typer.Exit(status)


def _read_hosts(hostfile: Path | None, hosts: str | None, np: int) -> tuple[Host, ...]:
    if hostfile is not None and hosts is not None:
        raise LaunchError("give --hostfile or -H, not both")
    if hostfile is not None:
        return parse_hostfile(hostfile)
    return parse_hosts(hosts) if hosts is not None else (Host("localhost", max(np, 1)),)


def _program(
    framework: Framework,
    spec: str,
    overrides: list[str],
    output_dir: Path | None,
    resume: Path | None,
    overwrite: bool,
    allowed: list[str],
) -> tuple[str, ...]:
    settings = [part for override in overrides for part in ("--set", override)]
    output = ["--output-dir", str(output_dir)] if output_dir else []
    output += ["--overwrite"] * overwrite
    resumed = ["--resume", str(resume)] if resume else []
    resumed += [part for field in allowed for part in ("--allow-change", field)]
    return ("-m", f"hvdtrain.{framework}.job", "--spec", spec, *settings, *output, *resumed)
