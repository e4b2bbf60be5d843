"""SIGTERM and SIGUSR1 ask a job to stop in such a way that it can go on: what a rank makes of them.

Before the first update the rank ends at once, for there is nothing to save. From then on a request is only
noted, and ranks agree on it at an update boundary (`hvdtrain.core.run.joint_updates`; in a loop of the user's
own, `hvdtrain.core.dropin.preempting`). One more request ends the rank.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.process.heartbeat import report_told

RESUMABLE_STATUS = 85
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
BEFORE_FIRST_UPDATE = (
    "preempted before the first update: nothing is lost; start it again with the same command"
)
_IN_A_LOOP = "stopped by a signal: start it again with the same command to go on from its last checkpoint"
# What the signals do in processes that a rank forks, as for its data. mpirun passes a request on to the whole
# group, and it is the parent's; pools end their processes by SIGTERM.
IN_CHILDREN = {signal.SIGTERM: signal.SIG_DFL, signal.SIGUSR1: signal.SIG_IGN}
# A scheduler may signal every process of a job, and launchers pass on what they hear: a rank then hears one
# request several times.
_SAME_REQUEST_S = 2.0


class Preempted(SystemExit):
    """All ranks were told to stop, and have saved what they need to go on."""

    def __init__(self) -> None:
        super().__init__(RESUMABLE_STATUS)


class _Requests:
    """What this process has been asked, and when it heeds it."""

    def __init__(self, at_once: str = BEFORE_FIRST_UPDATE) -> None:
        self._at_once = at_once
        self.first: float | None = None
        self.training = self.over = False

    def take(self, number: int) -> None:
        """Take a signal into account; called in a thread of its own."""
        if self.over:
            return
        if not self.training:
            if not launched_rank():
                print(self._at_once, flush=True)
            os._exit(RESUMABLE_STATUS)
        now = time.monotonic()
        if self.first is None:
            if number == signal.SIGTERM:
                # Meant for this host: what `hvdtrain run` hears, it passes on as SIGUSR1.
                report_told()
            self.first = now
        elif now - self.first > _SAME_REQUEST_S:
            name = signal.Signals(number).name
            print(f"[rank {launched_rank() or 0}] ended by a second {name}", file=sys.stderr, flush=True)
            os._exit(128 + number)


_requests = _Requests()
# What would undo `heed_preemption_for_good`, which holds the socket that signals are written to.
_for_good: Callable[[], None] | None = None


@contextmanager
def heed_preemption() -> Iterator[None]:
    """Take SIGTERM and SIGUSR1 as requests to stop, but those that the parent had this process ignore.

    Outside of the main thread, which alone may do so, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [number for number in PREEMPTION_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    undo = _heed(heeded, _Requests())
    try:
        yield
    finally:
        undo()


def heed_preemption_for_good() -> None:
    """As `heed_preemption`, to the end of the process, but for signals that the program handles itself."""
    global _for_good  # noqa: PLW0603
    if _for_good is None and threading.current_thread() is threading.main_thread():
        heeded = [number for number in PREEMPTION_SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
        _for_good = _heed(heeded, _Requests(_IN_A_LOOP))


@contextmanager
def requests_wait() -> Iterator[None]:
    """Only note a request inside, for `told_to_stop`; afterwards requests change nothing any more."""
    note_requests(True)
    try:
        yield
    finally:
        ignore_requests()


def note_requests(noted: bool) -> None:
    """From now on only note a request, for `told_to_stop`; or have it end the process at once again."""
    _requests.training = noted


def ignore_requests() -> None:
    """From now on requests change nothing any more."""
    _requests.over = True


def told_to_stop() -> bool:
    """Whether this rank has been asked to stop."""
    return _requests.first is not None


def _heed(heeded: Collection[signal.Signals], requests: _Requests) -> Callable[[], None]:
    """Have signals taken as requests; what is returned undoes it."""
    global _requests
    earlier, _requests = _requests, requests
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=_listen, args=(reader, requests), daemon=True).start()
    # Python calls its handlers between two instructions of the main thread, which may be in a long
    # computation or wait for other ranks; this tells the thread at once.
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, _nothing) for number in heeded}
    for number in heeded:
        # Libraries in C go on with what they wait for.
        signal.siginterrupt(number, False)

    def undo() -> None:
        global _requests  # noqa: PLW0603
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()
        _requests = earlier

    return undo


def _listen(reader: socket.socket, requests: _Requests) -> None:
    with reader:
        while number := reader.recv(1):
            # Other signals that have handlers in Python come here, too.
            if signal.getsignal(number[0]) is _nothing:
                requests.take(number[0])


def _nothing(number: int, frame: FrameType | None) -> None:
    del number, frame


def _leave_to_parent() -> None:
    """Undo `_heed` in a forked process, which would pass its own signals on to its parent."""
    for number, handler in IN_CHILDREN.items():
        if signal.getsignal(number) is _nothing:
            signal.signal(number, handler)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_leave_to_parent)
