"""What `hvdtrain run` was asked to start, on whatever hosts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hvdtrain.core.process.heartbeat import HEARTBEAT
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.launch.attendants import Attendant
from hvdtrain.launch.commands import Launcher, LaunchRequest, Wire, build_command, choose_launch
from hvdtrain.launch.endings import Ending
from hvdtrain.launch.facts import Facts, find_facts
from hvdtrain.launch.hosts import Host, format_hosts, is_local
from hvdtrain.launch.preflight import check_job
from hvdtrain.launch.run import run_command


@dataclass(frozen=True)
class Job:
    """One job.

    Attributes:
        spec: what is trained.
        framework: which trains it.
        program: what each rank's Python gets: (checkpoint to go on from, whether an older run is deleted).
        output_dir: where rank 0 writes.
        launcher: that was asked for.
        wire: that was asked for.
        network_interface: between the hosts; None: found out.
    """

    spec: JobSpec
    framework: str
    program: Callable[[Path | None, bool], tuple[str, ...]]
    output_dir: Path
    launcher: Launcher
    wire: Wire
    network_interface: str | None

    def check(self, hosts: Sequence[Host], resume: Path | None, overwrite: bool) -> None:
        """As `check_job`."""
        check_job(self.spec, hosts, self.output_dir, resume, self.network_interface, overwrite)

    def command(
        self,
        hosts: Sequence[Host],
        resume: Path | None,
        overwrite: bool,
        env: Mapping[str, str] = os.environ,
    ) -> list[str]:
        """The launcher's command line; a line on standard error says what was chosen and why.

        Args:
            hosts: that it runs on.
            resume: the checkpoint to go on from.
            overwrite: whether an older run is deleted.
            env: what the launcher will run in.

        Raises:
            LaunchError: nothing that was asked for works here.
        """
        request = LaunchRequest(
            program=self.program(resume, overwrite),
            hosts=tuple(hosts),
            local=is_local(hosts),
            workdir=str(Path.cwd()),
            launcher=self.launcher,
            wire=self.wire,
            network_interface=self.network_interface,
            env=env,
        )
        choice = choose_launch(request, self._facts)
        count = sum(host.slots for host in hosts)
        where = f"{count} rank{'s' if count > 1 else ''} on {format_hosts(hosts)}"
        print(f"hvdtrain: {where}, {choice.wire} by {choice.launcher} ({choice.why})", file=sys.stderr)
        return build_command(request, choice, self._facts)

    def start(
        self, hosts: Sequence[Host], resume: Path | None, overwrite: bool, attendant: Attendant | None
    ) -> Ending:
        """Run it once, to its end."""
        # Also in the command: some launchers pass on only the variables that it names.
        env = {**os.environ, HEARTBEAT: "1"} if attendant else os.environ
        return run_command(self.command(hosts, resume, overwrite, env), env, attendant)

    @cached_property
    def _facts(self) -> Facts:
        return find_facts(self.framework)
