"""`hvdtrain run` whose ranks are told to stop, or fail, in the updates that a script names; once in each.

    preempted.py SCRIPT_FOLDER ARGUMENT...

The arguments are those of `hvdtrain run`. SCRIPT_FOLDER/script.json maps updates to what happens in them:
`rank` (rank 1 is sent SIGTERM), `launcher` (`hvdtrain run` is), `kill` (rank 1 is killed), `twice` (rank 1 is
sent SIGTERM again when it has noted the first), and `raise` (in rank 1, each time). Under `pace` it has the
seconds that each update takes longer.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.process.preemption import told_to_stop
from hvdtrain.core.run.adapter import Adapter
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.script import run_job
from hvdtrain.launch import command
from tests.jobs.runs import start_sooner

PATIENCE_S = 120.0


def launch(folder: str, arguments: list[str], module: str = "tests.jobs.preempted") -> None:
    program, place = command._program, Path(folder)
    (place / "launcher").write_text(str(os.getpid()))

    def faulty(framework: command.Framework, *rest: Any) -> tuple[str, ...]:
        _, _, *options = program(framework, *rest)
        return ("-m", module, "rank", str(place), str(framework), *options)

    command._program = faulty
    sys.argv[1:] = arguments
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command.run)
    app()


def train(
    folder: str, name: str, arguments: list[str], wrap: Callable[[Adapter, Path], Any] | None = None
) -> None:
    def load() -> Framework:
        framework = importlib.import_module(f"hvdtrain.{name}.job").load()
        place = Path(folder)
        return dataclasses.replace(
            framework, adapter=lambda *given: (wrap or Scripted)(framework.adapter(*given), place)
        )

    start_sooner()
    run_job(load, "bert", arguments)


class Scripted:
    """An adapter in whose updates something happens to its process."""

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        self._adapter, self._folder, self._rank = adapter, folder, launched_rank()
        self._script = json.loads((folder / "script.json").read_text())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def update(
        self, window: Any, divisor: float, weight: float, rate: float, update: int, *rest: Any
    ) -> UpdateResult:
        time.sleep(self._script.get("pace", 0))
        happens = self._script.get(str(update))
        if happens:
            self._happen(happens, self._folder / f"{update}.{self._rank}")
        return self._adapter.update(window, divisor, weight, rate, update, *rest)

    def _happen(self, what: str, mark: Path) -> None:
        if mark.exists():
            return
        if what == "launcher" and self._rank == 0:
            mark.touch()
            os.kill(int((self._folder / "launcher").read_text()), signal.SIGTERM)
            # The others may be told later, or on other hosts not at all.
            wait_for(told_to_stop)
        elif what != "launcher" and self._rank == 1:
            if what == "raise":
                raise RuntimeError("cursed")
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL if what == "kill" else signal.SIGTERM)
            wait_for(told_to_stop)
            while what == "twice":
                # Signals that come together count once.
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGTERM)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


if __name__ == "__main__":
    first, *others = sys.argv[1:]
    if first == "rank":
        train(others[0], others[1], others[2:])
    else:
        launch(first, others)
