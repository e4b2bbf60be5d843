"""`hvdtrain run`: a spec, started on as many ranks and hosts as asked for."""

from __future__ import annotations

import secrets
import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.commands import Launcher, Wire
from hvdtrain.launch.hosts import Host, parse_hostfile, parse_hosts, take_slots

_HEARTBEAT_TIMEOUT_S, _STALL_TIMEOUT_S, _SNAPSHOT_STEPS = 30.0, 1800.0, 20


class Framework(StrEnum):
    """The framework that trains."""

    TORCH = "torch"
    TENSORFLOW = "tensorflow"


def run(
    spec: Annotated[str, typer.Argument(help="YAML file or packaged spec, such as bert.")],
    *,
    framework: Annotated[Framework, typer.Option(help="Which framework trains it.")],
    np: Annotated[
        int | None,
        typer.Option("-np", "--num-proc", help="How many ranks; elastic: slots to wait for at the start."),
    ] = None,
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
    min_np: Annotated[
        int | None,
        typer.Option("--min-np", "--min-num-proc", help="Makes the job elastic: go on with so many or more."),
    ] = None,
    max_np: Annotated[
        int | None, typer.Option("--max-np", "--max-num-proc", help="Makes it elastic: use so many at most.")
    ] = None,
    host_discovery_script: Annotated[
        str | None, typer.Option(help="Makes it elastic: prints the hosts there are, as node1:2, one a line.")
    ] = None,
    elastic_timeout: Annotated[
        float,
        typer.Option(min=0, envvar="HOROVOD_ELASTIC_TIMEOUT", help="Elastic: seconds to wait for slots."),
    ] = 600.0,
    reset_limit: Annotated[
        int | None, typer.Option(min=0, help="Elastic: start ranks again so often at most.")
    ] = None,
    blacklist_cooldown_range: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="MIN MAX", help="Elastic: seconds on the blacklist after a failure."),
    ] = None,
    heartbeat_timeout: Annotated[
        float | None,
        typer.Option(min=5, help="Elastic: seconds of silence after which a host is lost (default: 30)."),
    ] = None,
    stall_timeout: Annotated[
        float | None,
        typer.Option(min=5, help="Elastic: restart ranks after this many seconds of no progress (1800)."),
    ] = None,
    snapshot_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Elastic: updates from one snapshot in memory to the next (default: 20)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the launcher's command only.")] = False,
) -> None:
    """Train SPEC on -np ranks, here or on several hosts, with the fastest launcher at hand.

    With --min-np, --max-np or --host-discovery-script the job is elastic: it goes on when hosts are lost, and
    takes in new ones.

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
    from hvdtrain.launch.elastic import ElasticJob, ElasticOptions
    from hvdtrain.launch.job import Job
    from hvdtrain.launch.restarts import FixedJob, Restarts
    from hvdtrain.launch.sizes import keep_global_batch

    overrides, for_ranks, options = set_ or [], list[str](), None
    found = load_spec(spec, overrides)
    output_dir = output_dir and user_path(output_dir, "--output-dir", LaunchError)
    resume = resume and user_path(resume, "--resume", LaunchError)
    if allow_change and resume is None:
        raise LaunchError("--allow-change: is for a job that goes on: give --resume as well")
    if host_discovery_script is not None and (hostfile, hosts) != (None, None):
        raise LaunchError("give --host-discovery-script, or --hostfile or -H, not both")
    if (min_np, max_np, host_discovery_script) != (None, None, None):
        if max_restarts:
            raise LaunchError("--max-restarts: an elastic job has --reset-limit in its place")
        options = ElasticOptions(
            np=np,
            min_np=min_np,
            max_np=max_np,
            script=host_discovery_script,
            timeout=elastic_timeout,
            reset_limit=reset_limit,
            cooldown=blacklist_cooldown_range,
            silence=heartbeat_timeout or _HEARTBEAT_TIMEOUT_S,
            patience=stall_timeout or _STALL_TIMEOUT_S,
            # By it ranks know which snapshots are theirs.
            name=secrets.token_hex(8),
        )
        for_ranks = ["--snapshots", options.name, "--snapshot-steps", str(snapshot_steps or _SNAPSHOT_STEPS)]
        overrides = [*overrides, *keep_global_batch(found, np)]
        found = load_spec(spec, overrides)
    else:
        _refuse_elastic_options(
            reset_limit=reset_limit,
            blacklist_cooldown_range=blacklist_cooldown_range,
            heartbeat_timeout=heartbeat_timeout,
            stall_timeout=stall_timeout,
            snapshot_steps=snapshot_steps,
        )

    def program(resume: Path | None, overwrite: bool) -> tuple[str, ...]:
        command = _program(framework, spec, overrides, output_dir, resume, overwrite, allow_change or [])
        return (*command, *for_ranks)

    place = output_dir or default_output_dir(spec, framework)
    job = Job(found, framework, program, place, launcher, wire, network_interface)
    restarts = Restarts(place, resume, overwrite)
    runner: FixedJob | ElasticJob
    if options:
        runner = ElasticJob(job, restarts, options, _read_hosts(hostfile, hosts, options.slots_here))
    elif np is None:
        raise LaunchError("-np: give the number of ranks")
    else:
        runner = FixedJob(job, restarts, take_slots(_read_hosts(hostfile, hosts, np), np), max_restarts)
    if dry_run:
        typer.echo(shlex.join(job.command(runner.first_hosts(), resume, overwrite)))
    elif status := runner.run():
        raise typer.Exit(status)


def _refuse_elastic_options(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise LaunchError(
                f"--{name.replace('_', '-')} is for elastic jobs: give --min-np, --max-np or "
                "--host-discovery-script as well"
            )


def _read_hosts(hostfile: Path | None, hosts: str | None, slots: int) -> tuple[Host, ...]:
    if hostfile is not None and hosts is not None:
        raise LaunchError("give --hostfile or -H, not both")
    if hostfile is not None:
        return parse_hostfile(hostfile)
    return parse_hosts(hosts) if hosts is not None else (Host("localhost", max(slots, 1)),)


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
