"""The one place that runs a launcher's command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from types import FrameType

import psutil

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.process.outputs import outlast_readers
from hvdtrain.core.process.preemption import BEFORE_FIRST_UPDATE, PREEMPTION_SIGNALS, RESUMABLE_STATUS
from hvdtrain.launch.attendants import Attendant
from hvdtrain.launch.endings import Ending, ending_of
from hvdtrain.launch.output import FailureWatch
from hvdtrain.launch.processes import (
    STOP_SIGNALS,
    adopt_orphans,
    ask_ranks_to_stop,
    handle_signals,
    kill_children,
)
from hvdtrain.launch.screen import Screen

# Horovod gives its ranks 5 s to end and their shells 5 s more before it kills them; the supervisor waits 5 s.
_GRACE_S = 17.0
# Between two looks of an attendant.
_LOOK_S = 0.5


def run_command(command: Sequence[str], env: Mapping[str, str], attendant: Attendant | None = None) -> Ending:
    """Runs a launcher to its end, showing what its ranks print, and leaves no process behind.

    Rank 0's output appears as it is (progress bars too), the other ranks' lines with their rank in front.
    Standard input is closed. SIGTERM and SIGUSR1 are passed on to the ranks, which save and stop; a second
    one, SIGINT and SIGHUP end the whole job; one more ends it at once. On failure a last line on standard
    error says which rank failed first and how. Where it is the attendant that has had ranks stop, the last
    line is left to it. Call it from the main thread.

    Args:
        command: the launcher and its arguments, as made by `build_command`.
        env: the whole environment of the launcher.
        attendant: watches over the job; ranks are heard where `HEARTBEAT` is set in the environment.

    Raises:
        LaunchError: the launcher cannot be started.
    """
    outlast_readers()
    screen = Screen(attendant.heartbeats.hear if attendant else None)
    requests = _Requests(screen.watch, attendant)
    try:
        with _heed(requests), _no_orphans():
            status = _run(command, env, screen, requests, attendant)
        screen.finish()
        ending = ending_of(status, screen.watch, requests.passed_on)
    except _Stopped as stop:
        screen.finish()
        # The ranks may have been quicker than a second signal.
        ending = ending_of(0, screen.watch, True) if screen.watch.preempted else stop.ending
    if requests.by_signal or not requests.passed_on:
        ending.tell()
    return replace(ending, asked=requests.by_signal)


class _Stopped(BaseException):
    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class _Requests:
    """What signals ask for: the first of some that the ranks save and stop, all others that the job ends."""

    def __init__(self, watch: FailureWatch, attendant: Attendant | None) -> None:
        self._watch, self._attendant = watch, attendant
        self.job: int | None = None
        self.passed_on = self.by_signal = False

    def take(self, signum: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(signum).name
        again, self.by_signal = self.by_signal, True
        if again or signum not in PREEMPTION_SIGNALS:
            raise _Stopped(Ending(128 + signum, f"stopped by {name}"))
        print(f"hvdtrain: {name}: {self.pass_on()}", file=sys.stderr)

    def pass_on(self) -> str:
        """Have ranks save and stop; what to tell who has asked for it."""
        done = "ranks save and stop after this update; once more ends them at once"
        if self.passed_on:
            return done
        self.passed_on = True
        if self.job is None or not self._watch.heard:
            raise _Stopped(Ending(RESUMABLE_STATUS, BEFORE_FIRST_UPDATE))
        if ask_ranks_to_stop(self.job) or (self._attendant and self._attendant.tell()):
            return done
        return "no rank is on this host: send it to one of them"


def _run(
    command: Sequence[str],
    env: Mapping[str, str],
    screen: Screen,
    requests: _Requests,
    attendant: Attendant | None,
) -> int:
    job = _start(command, env)
    requests.job = job.pid
    assert job.stdout is not None
    assert job.stderr is not None
    screen.follow(job.stdout, sys.stdout)
    screen.follow(job.stderr, sys.stderr)
    try:
        status = _attended(job, screen.watch, requests, attendant) if attendant else job.wait()
    except _Stopped:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            job.wait(_GRACE_S)
        raise
    return status if status >= 0 else 128 - status


def _attended(
    job: subprocess.Popen[bytes], watch: FailureWatch, requests: _Requests, attendant: Attendant
) -> int:
    before = time.monotonic()
    while True:
        with suppress(subprocess.TimeoutExpired):
            return job.wait(_LOOK_S)
        now = time.monotonic()
        # More has passed where this process was stopped itself, and could hear nobody.
        attendant.heartbeats.let_pass(min(now - before, 2 * _LOOK_S), watch.failing)
        before = now
        if not watch.failing and (ending := attendant.look(requests.pass_on)):
            raise _Stopped(ending)


def _start(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    if shutil.which(command[0]) is None:
        raise LaunchError(f"cannot start `{command[0]}`: no such program")
    return subprocess.Popen(
        [sys.executable, "-m", "hvdtrain.launch.supervisor", *command],
        env={**env, **_terminal()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _terminal() -> dict[str, str]:
    """Tells rank 0 whether to draw: horovodrun gives it a pipe and mpirun a terminal, whatever stands here.

    Rich, as many programs, obeys both variables.
    """
    if not sys.stdout.isatty():
        return {"TERM": "dumb"}
    size = shutil.get_terminal_size()
    return {"FORCE_COLOR": "1", "COLUMNS": str(size.columns), "LINES": str(size.lines)}


@contextmanager
def _heed(requests: _Requests) -> Iterator[None]:
    before = handle_signals({*STOP_SIGNALS, *PREEMPTION_SIGNALS}, requests.take)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _no_orphans() -> Iterator[None]:
    """Adopts every orphan of the processes started inside and kills what is left of them at the end."""
    before = set(psutil.Process().children())
    adopt_orphans(True)
    try:
        yield
    finally:
        kill_children(but=before)
        adopt_orphans(False)
