"""Keeps the ranks of all competitors alive and lets one competitor train at a time."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from hvdtrain.core.errors import LaunchError
from side_by_side.competitors import RANKS, Competitor, Model, starts

_START_TIMEOUT_S = 300.0
_TURN_TIMEOUT_S = 600.0
# The first step of a turn finds other competitors' data in the caches; it is not counted.
_UNTIMED = 1


@dataclass(frozen=True)
class Turn:
    """What one competitor did in one turn.

    Attributes:
        seconds: of each timed step, the mean over ranks.
        losses: mean loss of every step, the untimed one included.
    """

    seconds: list[float]
    losses: list[float]


class Band:
    """The running ranks of one competitor, stopped outside their turns if they would work while waiting."""

    def __init__(self, competitor: Competitor, model: Model, folder: Path) -> None:
        """Start the ranks and wait until each has trained its first steps.

        Args:
            competitor: who.
            model: what they train.
            folder: an empty directory for logs and sockets.

        Raises:
            LaunchError: a rank ended or did not report in time; the message ends with what they printed.
        """
        self.competitor = competitor
        self._log = folder / "log.txt"
        self._ranks: dict[int, _Rank] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        with socket.socket(socket.AF_UNIX) as server, self._log.open("wb") as log, _ends(self.end):
            server.bind(str(folder / "meeting"))
            server.listen(RANKS)
            for start in starts(competitor, model, folder, folder / "meeting"):
                self._processes.append(
                    subprocess.Popen(
                        start.command, env=start.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
                )
            self._meet(server)
        self._signal(signal.SIGSTOP)

    def turn(self, steps: int) -> Turn:
        """Train a few steps.

        Args:
            steps: how many are timed.

        Returns:
            Their times and losses.

        Raises:
            LaunchError: a rank ended, or took too long.
        """
        self._signal(signal.SIGCONT)
        for rank in self._ranks.values():
            rank.say(steps + _UNTIMED)
        answers = [self._listen(rank) for rank in self._ranks.values()]
        self._signal(signal.SIGSTOP)
        seconds = [sum(step) / RANKS for step in zip(*(a["seconds"] for a in answers), strict=True)]
        losses = [sum(step) for step in zip(*(a["losses"] for a in answers), strict=True)]
        return Turn(seconds[_UNTIMED:], losses)

    def end(self) -> None:
        """End every process of this competitor; stopped ones too."""
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()
            process.wait()
        for rank in self._ranks.values():
            rank.close()

    def _meet(self, server: socket.socket) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while len(self._ranks) < RANKS:
            if any(process.poll() is not None for process in self._processes):
                raise self._failure("a rank ended before its first steps were done")
            if time.monotonic() > deadline:
                raise self._failure(f"not every rank was ready after {_START_TIMEOUT_S:.0f} s")
            if select.select([server], [], [], 0.2)[0]:
                rank = _Rank(server.accept()[0])
                hello = rank.hear(_START_TIMEOUT_S)
                rank.pid = hello["pid"]
                self._ranks[hello["rank"]] = rank

    def _listen(self, rank: _Rank) -> dict[str, Any]:
        try:
            return rank.hear(_TURN_TIMEOUT_S)
        except (OSError, ValueError) as error:
            raise self._failure(f"a rank was lost during its turn ({error})") from None

    def _signal(self, signum: signal.Signals) -> None:
        if self.competitor.works_while_waiting:
            for rank in self._ranks.values():
                os.kill(rank.pid, signum)

    def _failure(self, what: str) -> LaunchError:
        printed = self._log.read_text(errors="replace")[-3000:]
        return LaunchError(f"{self.competitor.name}: {what}; it printed:\n{printed}")


class _Rank:
    pid = 0

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lines: IO[str] = connection.makefile("r")

    def say(self, steps: int) -> None:
        self._connection.sendall(f"{steps}\n".encode())

    def hear(self, timeout_s: float) -> dict[str, Any]:
        self._connection.settimeout(timeout_s)
        return json.loads(self._lines.readline())

    def close(self) -> None:
        self._lines.close()
        self._connection.close()


def take_turns(
    of: Sequence[Competitor],
    model: Model,
    rounds: int,
    steps: int,
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[tuple[Competitor, Turn]]:
    """Start all competitors, then let each train a few steps in every round, the first one another each time.

    Args:
        of: the competitors.
        model: what they train.
        rounds: turns of each competitor.
        steps: timed steps of a turn.
        folder: for logs and sockets.
        say: told what goes on.

    Yields:
        Each turn; a round is complete after as many as there are competitors.

    Raises:
        LaunchError: a competitor cannot be started, or failed.
    """
    with ExitStack() as stack:
        bands = []
        for number, competitor in enumerate(of):
            say(f"starting {competitor.name}")
            own = folder / f"{model}-{competitor.framework}-{number}"
            own.mkdir()
            bands.append(Band(competitor, model, own))
            stack.callback(bands[-1].end)
        for done in range(rounds):
            say(f"round {done + 1} of {rounds}")
            first = done % len(bands)
            for band in (*bands[first:], *bands[:first]):
                yield band.competitor, band.turn(steps)


@contextmanager
def _ends(end: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        end()
        raise
