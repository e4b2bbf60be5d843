"""One rank of a competitor: reports to the conductor, then trains so many steps whenever it is told to."""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
import time
from typing import Any

from hvdtrain.core.errors import HvdtrainError
from side_by_side.competitors import Framework, Model, model_spec

# The first steps trace, allocate and connect.
_FIRST_STEPS = 3


def main(framework: Framework, role: str, model: Model, meeting: str, *settings: str) -> None:
    """Join, and train until told to stop.

    Args:
        framework: whose competitor it is.
        role: a function of that framework's steps.
        model: name of the model.
        meeting: the conductor's socket.
        settings: overrides of the job.
    """
    build = getattr(importlib.import_module(f"side_by_side.{framework}_steps"), role)
    rank, step = build(model_spec(model, settings))
    for number in range(_FIRST_STEPS):
        step(number)
    done = _FIRST_STEPS
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(meeting)
        lines = connection.makefile("rw")
        _say(lines, {"rank": rank, "pid": os.getpid()})
        while steps := json.loads(lines.readline() or "0"):
            seconds, losses = [], []
            for number in range(done, done + steps):
                started = time.perf_counter()
                losses.append(step(number))
                seconds.append(time.perf_counter() - started)
            done += steps
            _say(lines, {"seconds": seconds, "losses": losses})
    # Ranks are ended, not shut down: nothing they hold is worth the wait.
    os._exit(0)


def _say(lines: Any, message: dict[str, Any]) -> None:
    lines.write(json.dumps(message) + "\n")
    lines.flush()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])  # type: ignore[arg-type]  # the conductor wrote them
    except HvdtrainError as error:
        sys.exit(f"error: {error}")
