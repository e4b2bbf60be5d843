"""Ranks that stay between the launches of test modules, which pay start-up once that way."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_LOOK_S = 0.05
_END = "end"
# Of one pytest process; each rank of TensorFlow's has some 700 MiB.
_MOST = 4
# After so many scenarios ranks are started again: TensorFlow keeps what it has traced.
_SCENARIOS = 24


class Standing:
    """Ranks of one launch, each of which trains one listing of scenarios after another."""

    def __init__(self, ranks: int, command: list[str], env: dict[str, str]) -> None:
        """Start them.

        Args:
            ranks: how many.
            command: of the launcher; a folder in which ranks find their listings comes behind it.
            env: their environment.
        """
        self._ranks, self.listings, self.traced = ranks, 0, 0
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._output: IO[bytes] = (self._folder / "output").open("wb")
        self._process = subprocess.Popen(
            [*command, str(self._folder)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def train(self, listing: Path, traced: int, timeout: float) -> None:
        """Have all ranks train the scenarios of a listing; AssertionError with what they printed if not."""
        self.listings, self.traced = self.listings + 1, self.traced + traced
        unfinished = self._folder / "listing"
        unfinished.write_text(str(listing))
        unfinished.rename(self._folder / str(self.listings))
        end = time.monotonic() + timeout
        while not all(_done(self._folder, self.listings, rank).exists() for rank in range(self._ranks)):
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < end, f"{timeout} s are over: {self._said()}"
            time.sleep(_LOOK_S)

    def end(self) -> None:
        """End the ranks, however far they are."""
        (self._folder / _END).touch()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        self._output.close()
        shutil.rmtree(self._folder)

    def _said(self) -> str:
        return (self._folder / "output").read_text(errors="replace")[-5000:]


_standing: dict[object, Standing] = {}


def train_standing(
    key: object, ranks: int, command: list[str], env: dict[str, str], listing: Path, traced: int
) -> None:
    """Train the scenarios of a listing by ranks that stay; those that were not used for longest end.

    Args:
        key: of the ranks: what they share.
        ranks: how many.
        command: that launches them, if they are not there.
        env: their environment.
        listing: of the scenarios.
        traced: how many of them leave something behind in the ranks.
    """
    found = _standing.pop(key, None)
    if found and found.traced + traced > _SCENARIOS:
        found.end()
        found = None
    while not found and len(_standing) >= _MOST:
        _standing.pop(next(iter(_standing))).end()
    found = found or Standing(ranks, command, env)
    try:
        found.train(listing, traced, timeout=600)
    except BaseException:
        found.end()
        raise
    _standing[key] = found


def end_all() -> None:
    """End all ranks that stay."""
    while _standing:
        _standing.popitem()[1].end()


def listings(folder: Path, rank: int) -> Iterator[Path]:
    """What a rank is to train, one after another, until it is to end or its pytest is gone."""
    owner = int(os.environ["PYTEST_PROCESS"])
    for number in itertools.count(1):
        place = folder / str(number)
        while not place.exists():
            if (folder / _END).exists() or not Path(f"/proc/{owner}").exists():
                return
            time.sleep(_LOOK_S)
        yield Path(place.read_text())
        _done(folder, number, rank).touch()


def _done(folder: Path, number: int, rank: int) -> Path:
    return folder / f"{number}.{rank}"
