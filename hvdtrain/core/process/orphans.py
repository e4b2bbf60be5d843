"""A process ends with the one that started it, however that one ended."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from functools import cache, partial

# Between two looks at who this process's parent is; a lost output is noticed at once.
_LOOK_MS = 1000
_STATUS = 1


@cache
def end_with_launcher() -> None:
    """Have a thread end this rank once its launcher is gone; a second call does nothing."""
    # Not sys.exit: Horovod's own exit would wait for the other ranks.
    call_when_orphaned(partial(os._exit, _STATUS))


def call_when_orphaned(action: Callable[[], object]) -> None:
    """Have a thread call `action` once the process that started this one is gone.

    It is gone when this process has another parent, or when nobody reads its standard output and error any
    more. The latter is all that can be noticed where a shell stands between: horovodrun ends a remote rank by
    ending its local ssh, and ssh without a terminal leaves the remote program running. One output alone that
    lost its reader means nothing, for it may be a user's own pipe; nor do files.

    Args:
        action: called once, in that thread.
    """
    # The number of an output that was closed soon means another file.
    outputs = {number for number in (1, 2) if _events(number) == 0}
    threading.Thread(target=_watch, args=(os.getppid(), outputs, action), daemon=True).start()


def _watch(parent: int, outputs: set[int], action: Callable[[], object]) -> None:
    # No event is asked for: errors and hang-ups are reported always, and a file has neither.
    readers = select.poll()
    for number in outputs:
        readers.register(number, 0)
    watched = bool(outputs)
    while os.getppid() == parent and (outputs or not watched):
        for number, _ in readers.poll(_LOOK_MS):
            readers.unregister(number)
            outputs.discard(number)
    action()


def _events(number: int) -> int:
    found = select.poll()
    found.register(number, 0)
    return next((event for _, event in found.poll(0)), 0)
