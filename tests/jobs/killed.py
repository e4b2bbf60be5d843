"""`hvdtrain run` that is killed at a moment that a plan names, and whose ranks note what they train on.

    killed.py FOLDER ARGUMENT...

The arguments are those of `hvdtrain run`. FOLDER/plan.json says `who` is killed (`0` or `1`: that rank,
`all` of them, the `launcher`, or nobody), and when: `delay` seconds after the start of an `update`, or at an
`event` inside of saving, such as that a file is opened or renamed, counted over all checkpoints. Each rank
adds a line to FOLDER/samples.RANK for every update that was applied: its number, and the rank's samples.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.data import batches
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.run.adapter import Adapter
from hvdtrain.core.run.results import UpdateResult
from tests.jobs.preempted import launch, train

RANKS = 2
_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}


class Killed:
    """An adapter whose process, and perhaps others, are killed."""

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        self._adapter, self._folder, self._rank = adapter, folder, launched_rank() or 0
        self._plan = json.loads((folder / "plan.json").read_text())
        (folder / f"pid.{self._rank}").write_text(str(os.getpid()))
        self._log = (folder / f"samples.{self._rank}").open("a")
        # Of each window, in their order; they are made ahead.
        self._shares: deque[Sequence[np.ndarray]] = deque()
        cut = batches.rank_share

        def noted(*arguments: Any) -> list[np.ndarray]:
            self._shares.append(cut(*arguments))
            return [*self._shares[-1]]

        batches.rank_share = noted
        self._events = 0
        if self._rank == 0 and "event" in self._plan:
            sys.addaudithook(self._see)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def update(
        self, window: Any, divisor: float, weight: float, rate: float, update: int, *rest: Any
    ) -> UpdateResult:
        if self._rank == 0 and update == self._plan.get("update"):
            threading.Timer(self._plan["delay"], self._kill).start()
        result = self._adapter.update(window, divisor, weight, rate, update, *rest)
        samples = np.concatenate(self._shares.popleft()).tolist()
        if result.applied:
            self._log.write(json.dumps([update, samples]) + "\n")
            self._log.flush()
        return result

    def _see(self, event: str, arguments: Any) -> None:
        if event in _EVENTS and threading.current_thread().name == "checkpoint-writer":
            self._events += 1
            if self._events == self._plan["event"]:
                self._kill()

    def _kill(self) -> None:
        who = self._plan["who"]
        names = ["pid.1", "pid.0"] if who == "all" else ["launcher"] if who == "launcher" else [f"pid.{who}"]
        for name in names:
            os.kill(int((self._folder / name).read_text()), signal.SIGKILL)


if __name__ == "__main__":
    first, *others = sys.argv[1:]
    if first == "rank":
        train(others[0], others[1], others[2:], Killed)
    else:
        launch(first, others, "tests.jobs.killed")
