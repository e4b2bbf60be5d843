"""The one place that runs a launcher's command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, TextIO

import psutil

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.process.outputs import outlast_readers
from hvdtrain.core.process.preemption import BEFORE_FIRST_UPDATE, PREEMPTION_SIGNALS, RESUMABLE_STATUS
from hvdtrain.launch.endings import Ending, ending_of
from hvdtrain.launch.output import FailureWatch, Line, LineSplitter, Statements
from hvdtrain.launch.processes import (
    STOP_SIGNALS,
    adopt_orphans,
    ask_ranks_to_stop,
    handle_signals,
    kill_children,
)

# Horovod gives its ranks 5 s to end and their shells 5 s more before it kills them; the supervisor waits 5 s.
_GRACE_S = 17.0


def run_command(command: Sequence[str], env: Mapping[str, str]) -> Ending:
    """Runs a launcher to its end, showing what its ranks print, and leaves no process behind.

    Rank 0's output appears as it is (progress bars too), the other ranks' lines with their rank in front.
    Standard input is closed. SIGTERM and SIGUSR1 are passed on to the ranks, which save and stop; a second
    one, SIGINT and SIGHUP end the whole job; one more ends it at once. On failure a last line on standard
    error says which rank failed first and how. Call it from the main thread.

    Args:
        command: the launcher and its arguments, as made by `build_command`.
        env: the whole environment of the launcher.

    Raises:
        LaunchError: the launcher cannot be started.
    """
    outlast_readers()
    screen = _Screen()
    requests = _Requests(screen.watch)
    try:
        with _heed(requests), _no_orphans():
            status = _run(command, env, screen, requests)
        screen.finish()
        ending = ending_of(status, screen.watch, requests.passed_on)
    except _Stopped as stop:
        screen.finish()
        # The ranks may have been quicker than a second signal.
        ending = ending_of(0, screen.watch, True) if screen.watch.preempted else stop.ending
    ending.tell()
    return ending


class _Stopped(BaseException):
    def __init__(self, ending: Ending) -> None:
        self.ending = ending


class _Requests:
    """What signals ask for: the first of some that the ranks save and stop, all others that the job ends."""

    def __init__(self, watch: FailureWatch) -> None:
        self._watch = watch
        self.job: int | None = None
        self.passed_on = False

    def take(self, signum: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(signum).name
        if self.passed_on or signum not in PREEMPTION_SIGNALS:
            raise _Stopped(Ending(128 + signum, f"stopped by {name}"))
        self.passed_on = True
        if self.job is None or not self._watch.heard:
            raise _Stopped(Ending(RESUMABLE_STATUS, BEFORE_FIRST_UPDATE))
        if ask_ranks_to_stop(self.job):
            told = "ranks save and stop after this update; once more ends them at once"
        else:
            told = "no rank is on this host: send it to one of them"
        print(f"hvdtrain: {name}: {told}", file=sys.stderr)


class _Screen:
    """Writes the lines of both streams to where they belong, one at a time."""

    def __init__(self) -> None:
        self.watch = FailureWatch()
        self._lock = threading.Lock()
        self._bar_shown = False
        self._consequences: list[tuple[Line, TextIO]] = []
        self._readers: list[threading.Thread] = []

    def follow(self, source: IO[bytes], to: TextIO) -> None:
        reader = threading.Thread(target=self._read, args=(source, to), daemon=True)
        reader.start()
        self._readers.append(reader)

    def finish(self) -> None:
        # The pipes end with their last writer, and none is left.
        for reader in self._readers:
            reader.join()
        # Where no rank failed by itself, they are all there is to go by.
        if self.watch.first_failure() is None:
            for line, to in self._consequences:
                self._show(line, to)

    def _read(self, source: IO[bytes], to: TextIO) -> None:
        decoder = getincrementaldecoder("utf-8")(errors="replace")
        splitter, statements = LineSplitter(), Statements()
        while chunk := os.read(source.fileno(), 65536):
            for line in splitter.feed(decoder.decode(chunk)):
                self._take(statements.feed(line), to)
        for line in splitter.close():
            self._take(statements.feed(line), to)
        self._take(statements.close(), to)

    def _take(self, statements: Iterable[Sequence[Line]], to: TextIO) -> None:
        with self._lock:
            for lines in statements:
                for line in lines:
                    self.watch.note(line)
                if self.watch.says_more(lines):
                    for line in lines:
                        self._sort(line, to)

    def _sort(self, line: Line, to: TextIO) -> None:
        if self.watch.is_consequence(line):
            self._consequences.append((line, to))
        elif not (self.watch.is_noise(line) or self.watch.is_said_last(line)):
            self._show(line, to)

    def _show(self, line: Line, to: TextIO) -> None:
        is_bar = line.text.endswith("\r")
        clear = "\x1b[K" if self._bar_shown and not is_bar and to.isatty() else ""
        self._bar_shown = is_bar
        to.write(clear + (f"[rank {line.rank}] {line.text}" if line.rank else line.text))
        to.flush()


def _run(command: Sequence[str], env: Mapping[str, str], screen: _Screen, requests: _Requests) -> int:
    job = _start(command, env)
    requests.job = job.pid
    assert job.stdout is not None
    assert job.stderr is not None
    screen.follow(job.stdout, sys.stdout)
    screen.follow(job.stderr, sys.stderr)
    try:
        status = job.wait()
    except _Stopped:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            job.wait(_GRACE_S)
        raise
    return status if status >= 0 else 128 - status


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
