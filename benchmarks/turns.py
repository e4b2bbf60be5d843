"""Jobs on emulated hosts that take turns, so that what disturbs the machine disturbs them alike."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.core.run.metrics import METRICS_FILE, read_metrics
from tests.launch.cluster import Cluster

_POLL_S = 0.03
# Jobs in which nothing happens for so long are given up.
_STILL_S = 300.0
Line = dict[str, float]


@dataclass(frozen=True)
class Job:
    """A job that goes on until it is killed.

    Args:
        hosts: where its ranks run.
        folder: its output directory, which the command lines of all its processes name.
        ended: exit status and output, should it end.
    """

    hosts: Cluster
    folder: Path
    ended: Future[tuple[int, str]]

    def count(self) -> int:
        """Updates (or lines of several) in its metric log."""
        log = self.folder / METRICS_FILE
        return log.read_bytes().count(b"\n") if log.exists() else 0

    def lines(self, first: int, count: int) -> list[Line]:
        """Those lines of its metric log."""
        return read_metrics(self.folder)[0][first : first + count]

    def signal(self, number: signal.Signals) -> None:
        """Signals all its processes."""
        for pid in {pid for name in self.hosts.names for pid in self.hosts.processes(name)}:
            with suppress(FileNotFoundError, ProcessLookupError):
                if os.fsencode(self.folder) in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, number)


@contextmanager
def started(hosts: Cluster, commands: Mapping[Path, tuple[str, Sequence[str]]]) -> Iterator[list[Job]]:
    """Starts jobs, and kills them at the end.

    Args:
        hosts: where.
        commands: of each output directory the host that starts the job, and the command.
    """
    with ThreadPoolExecutor(len(commands)) as pool:
        jobs = [
            Job(hosts, folder, pool.submit(hosts.run, name, command, Path.cwd(), os.environ, 3600.0))
            for folder, (name, command) in commands.items()
        ]
        try:
            yield jobs
        finally:
            while not all(job.ended.done() for job in jobs):
                for job in jobs:
                    job.signal(signal.SIGKILL)
                time.sleep(_POLL_S)


@dataclass(frozen=True)
class Group:
    """Jobs that run at the same time.

    Args:
        jobs: all started.
        first: lines of each job's metric log before its first turn.
        lines: lines of each job in a turn, beside the one that the pause before it falls into.
    """

    jobs: Sequence[Job]
    first: int
    lines: int


def take_turns(groups: Sequence[Group], turns: int) -> list[list[list[Line]]]:
    """Runs one group of jobs at a time; the others are stopped meanwhile.

    Args:
        groups: all jobs under way.
        turns: turns of each group.

    Returns:
        Of each group and job the lines of all turns, without those that a pause fell into.
    """
    for group in groups:
        _run(group.jobs, [group.first] * len(group.jobs))
    found: list[list[list[Line]]] = [[[] for _ in group.jobs] for group in groups]
    for _ in range(turns):
        for group, by_job in zip(groups, found, strict=True):
            whole = [job.count() + 1 for job in group.jobs]
            _run(group.jobs, [line + group.lines for line in whole])
            for job, line, lines in zip(group.jobs, whole, by_job, strict=True):
                lines.extend(job.lines(line, group.lines))
    return found


def _run(jobs: Sequence[Job], until: Sequence[int]) -> None:
    """Lets these jobs go on until each has so many lines."""
    for job in jobs:
        job.signal(signal.SIGCONT)
    counts, since = [job.count() for job in jobs], time.monotonic()
    while any(count < line for count, line in zip(counts, until, strict=True)):
        time.sleep(_POLL_S)
        for job in jobs:
            if job.ended.done():
                sys.exit(f"error: a job ended:\n{job.ended.result()[1][-3000:]}")
        before, counts = counts, [job.count() for job in jobs]
        since = time.monotonic() if counts != before else since
        if time.monotonic() > since + _STILL_S:
            sys.exit(f"error: no update of {jobs[0].folder} within {_STILL_S:.0f} s")
    for job in jobs:
        job.signal(signal.SIGSTOP)
