"""Parents, children and signals: orphans adopted, children that end with their parent, whole trees ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from types import FrameType
from typing import Any

import psutil

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any]
# The kernel ends a killed process at once, but for one that waits for a disk.
_KILL_S = 12.0
# From <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def handle_signals(numbers: Iterable[signal.Signals], handler: Handler) -> dict[signal.Signals, Any]:
    """Installs a handler for those signals that the parent did not have this process ignore.

    They stay ignored: SIGHUP under nohup, SIGINT in a job that a shell started in the background.

    Args:
        numbers: the signals.
        handler: for all of them.

    Returns:
        What was in the place of each one installed.
    """
    heeded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heeded}


def adopt_orphans(adopt: bool) -> None:
    """Makes this process the parent of every orphan among its descendants, or ends that."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(adopt))


def end_with_parent(parent: int) -> None:
    """Has this process killed when its parent ends; call it in a child before `exec`.

    Args:
        parent: the parent's process id.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have ended before that call.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def kill_children(but: AbstractSet[psutil.Process] = frozenset()) -> None:
    """Kills this process's children and theirs, until none is left but those given."""
    while left := set(psutil.Process().children()) - but:
        for child in left:
            with suppress(psutil.NoSuchProcess):
                for process in (child, *child.children(recursive=True)):
                    process.kill()
        psutil.wait_procs(left, timeout=_KILL_S)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
