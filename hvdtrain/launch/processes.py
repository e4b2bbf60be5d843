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

from hvdtrain.launch.commands import GUARD

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


def ask_ranks_to_stop(ancestor: int) -> bool:
    """Sends SIGUSR1 to the ranks below a process, and to those that mpirun has started on other hosts.

    Args:
        ancestor: its process id.

    Returns:
        False where there is none to send it to.
    """
    try:
        below = psutil.Process(ancestor).children(recursive=True)
    except psutil.NoSuchProcess:
        # Its end says more.
        return True
    # It passes the signal on to every rank of its job.
    heard = [process for process in below if _is(process, lambda p: p.name() == "mpirun")]
    heard = heard or [process for process in below if _is(process, _is_rank)]
    for process in heard:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGUSR1)
    return bool(heard)


def _is_rank(process: psutil.Process) -> bool:
    """A rank, and not what it has forked."""
    parent = process.parent()
    return _is_guarded(process) and not (parent and _is_guarded(parent))


def _is_guarded(process: psutil.Process) -> bool:
    return tuple(process.cmdline()[1:3]) == GUARD


def _is(process: psutil.Process, what: Callable[[psutil.Process], bool]) -> bool:
    try:
        return what(process)
    except psutil.NoSuchProcess:
        return False


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value)
