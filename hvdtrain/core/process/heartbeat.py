"""A rank says every second that it is alive, which process it is and how far it has come.

`hvdtrain run` takes these lines out of what it shows. They stand in standard error, which launchers pass on
from every host.
"""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import suppress
from functools import cache
from typing import NamedTuple

# In the environment: the launcher listens.
HEARTBEAT = "HVDTRAIN_HEARTBEAT"
BEAT = re.compile(r"\x16(?P<pid>\d+) (?P<step>-?\d+) (?P<work>\d+)(?P<told> told)?\n")
_SECONDS_BETWEEN = 1.0
_step, _work, _reports, _told = -1, 0, 0, ""


class Beat(NamedTuple):
    """What a rank says.

    Attributes:
        pid: of its process, on its own host.
        step: updates that count; -1 before training.
        work: a count of all that it has done; it stays the same while the rank waits.
        told: whether its host's scheduler has told it to stop.
    """

    pid: int
    step: int
    work: int = 0
    told: bool = False

    @classmethod
    def of(cls, found: re.Match[str]) -> Beat:
        """What `BEAT` has found."""
        pid, step, work = map(int, found.group("pid", "step", "work"))
        return cls(pid, step, work, found["told"] is not None)


def report_step(step: int) -> None:
    """Have this rank's next heartbeats say how far it is; the first two steps are said at once.

    Args:
        step: updates that count.
    """
    global _step, _reports  # noqa: PLW0603
    _step = step
    report_work()
    if _reports < 2 and _is_heard():
        # Where it begins, and that it goes on.
        _reports += 1
        with suppress(OSError):
            _beat()


def report_work() -> None:
    """Have this rank's next heartbeats report progress, if only of a message or a batch."""
    global _work  # noqa: PLW0603
    _work += 1


def report_told() -> None:
    """Have this rank's heartbeats say, at once, that its host's scheduler has told it to stop."""
    global _told  # noqa: PLW0603
    _told = " told"
    if _is_heard():
        with suppress(OSError):
            _beat()


@cache
def start_heartbeat() -> None:
    """Have a thread say every second that this rank is alive, where a launcher listens; once."""
    if _is_heard():
        threading.Thread(target=_beat_on, daemon=True).start()


def _beat_on() -> None:
    # Whoever ends a rank without readers is another.
    with suppress(OSError):
        while True:
            _beat()
            time.sleep(_SECONDS_BETWEEN)


def _beat() -> None:
    # One call, so that nothing of another thread's comes between.
    os.write(2, f"\x16{os.getpid()} {_step} {_work}{_told}\n".encode())


def _is_heard() -> bool:
    return bool(os.environ.get(HEARTBEAT))
