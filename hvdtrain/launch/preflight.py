"""What can be said of a job before anything starts: each fault is one line at once, not after imports."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from hvdtrain.core.checkpoints.finding import AUTO
from hvdtrain.core.checkpoints.state import check_checkpoint
from hvdtrain.core.data.building import cache_directory
from hvdtrain.core.data.lines import unreadable
from hvdtrain.core.data.sources import source_files, validation_files
from hvdtrain.core.data.text import SourceSpec
from hvdtrain.core.errors import DataError, LaunchError
from hvdtrain.core.families import custom, family_of
from hvdtrain.core.process.host import usable_cores
from hvdtrain.core.process.paths import user_path
from hvdtrain.core.run.job import plan_job, prepare_data
from hvdtrain.core.run.output_dir import check_output_dir
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.launch.hosts import Host, is_local


def check_job(
    spec: JobSpec,
    hosts: Sequence[Host],
    output_dir: Path,
    resume: Path | None,
    interface: str | None,
    overwrite: bool = False,
) -> None:
    """Refuse what ranks would refuse later, as far as it can be seen from here.

    Files are looked at where this machine is one of the hosts that read or write them. With all ranks here,
    the data is prepared for them.

    Args:
        spec: the job.
        hosts: where its ranks will run, rank 0 on the first.
        output_dir: where rank 0 writes.
        resume: the checkpoint that rank 0 reads, or `AUTO`.
        interface: names of the interfaces between the hosts, with commas.
        overwrite: whether a run that the output directory holds is deleted.

    Raises:
        LaunchError: a host, an interface or the output directory cannot be used.
        CheckpointError: it is no checkpoint, or the output directory holds another run.
        DataError: a file of the data is missing or, with all ranks here, holds what cannot be used.
        SpecError: with all ranks here, no plan can be made for so many.
    """
    here = [is_local([host]) for host in hosts]
    for host, own in zip(hosts, here, strict=True):
        if not own:
            _check_host(host)
    if interface is not None and any(here):
        _check_interfaces(interface)
    if all(here) and interface is not None:
        print(
            f"hvdtrain: --network-interface {interface} is not used: all ranks are on this host",
            file=sys.stderr,
        )
    if here[0]:
        _check_output(output_dir)
        if resume is not None and resume != AUTO:
            check_checkpoint(resume)
        check_output_dir(output_dir, resume, overwrite)
    if isinstance(spec.model, custom.ModelSpec):
        # The user's code runs on the ranks alone: it may take its time, and it may start what it needs.
        return
    if all(here):
        # The ranks would do the same, later, and all of them wait for it; they open what is prepared here.
        dataset = prepare_data(spec, announce=partial(print, flush=True))
        size = sum(host.slots for host in hosts)
        threads = World(0, size, 0, size, usable_cores()).threads(spec.num_threads)
        plan_job(spec, family_of(spec.model), dataset, size, threads)
    elif any(here):
        # Its other hosts prepare theirs meanwhile.
        _check_data(spec)


def _check_host(host: Host) -> None:
    try:
        socket.getaddrinfo(host.name, None)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no host can have such a name"
        raise LaunchError(f"host {host.name}: its name has no address: {why}") from None


def _check_interfaces(names: str) -> None:
    known = sorted(psutil.net_if_addrs())
    for name in names.split(","):
        if name not in known:
            raise LaunchError(
                f"--network-interface {names}: this machine has no {name!r}; it has {', '.join(known)}"
            )


def _check_output(directory: Path) -> None:
    made = next(folder for folder in (directory, *directory.absolute().parents) if os.path.lexists(folder))
    if not made.is_dir():
        raise LaunchError(f"--output-dir {directory}: {made} is not a directory")
    if not os.access(made, os.W_OK | os.X_OK):
        raise LaunchError(f"--output-dir {directory}: {made} cannot be written by this user")


def _check_data(spec: JobSpec) -> None:
    data = spec.data
    if not isinstance(data, SourceSpec):
        return
    cache_directory(data.cache_dir)
    for find, field in ((source_files, "files"), (validation_files, "validation_files")):
        for path in find(data):
            _check_readable(path, f"data.{field}: ")
    if data.tokenizer_file is not None:
        file = user_path(data.tokenizer_file, "data.tokenizer_file:", DataError)
        _check_readable(file, "data.tokenizer_file: ")


def _check_readable(path: Path, where: str) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise unreadable(path, error, where) from None
