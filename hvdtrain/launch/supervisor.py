"""`python -m hvdtrain.launch.supervisor COMMAND`: runs a launcher, and ends it when `hvdtrain run` is gone.

`hvdtrain run` may be killed outright, and then has no time to end anything. Launchers do not all notice that,
nor do they all act on a signal: horovodrun has mpirun started by a shell.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import partial

import psutil

from hvdtrain.core.process.orphans import call_when_orphaned
from hvdtrain.launch.processes import (
    STOP_SIGNALS,
    adopt_orphans,
    end_with_parent,
    handle_signals,
    kill_children,
)

# What shells exit with when a command cannot be started.
_CANNOT_START = 127
_GRACE_S = 5.0


def main(command: Sequence[str]) -> int:
    """Runs the launcher to its end, and ends what it left behind.

    Args:
        command: the launcher and its arguments.

    Returns:
        Its exit status, 128 + signal for a killed one.
    """
    adopt_orphans(True)
    stopping = threading.Event()
    # They are for the launcher, in this process group too. A handler, unlike SIG_IGN, is not inherited.
    handle_signals(STOP_SIGNALS, lambda *_: stopping.set())
    handle_signals((signal.SIGUSR1,), lambda *_: None)
    try:
        # Safe: no thread runs yet.
        launcher = subprocess.Popen(command, preexec_fn=partial(end_with_parent, os.getpid()))  # noqa: PLW1509
    except OSError as error:
        print(f"error: cannot start `{command[0]}`: {error.strerror or error}", file=sys.stderr)
        return _CANNOT_START
    call_when_orphaned(partial(_stop, stopping))
    status = launcher.wait()
    if stopping.is_set():
        # An mpirun whose shell is gone may still be ending its ranks.
        psutil.wait_procs(psutil.Process().children(), timeout=_GRACE_S)
    kill_children()
    return status if status >= 0 else 128 - status


def _stop(stopping: threading.Event) -> None:
    stopping.set()
    # A launcher that hears this takes its files in /dev/shm away.
    os.killpg(0, signal.SIGTERM)
    psutil.wait_procs(psutil.Process().children(), timeout=_GRACE_S)
    kill_children()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
