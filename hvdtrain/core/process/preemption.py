"""SIGTERM and SIGUSR1 ask a job to stop in such a way that it can go on: what a rank makes of them.

Before the first update the rank ends at once, for there is nothing to save. From then on a request is only
noted, and ranks agree on it at an update boundary (`hvdtrain.core.run.joint_updates`). One more request ends
the rank.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.process.heartbeat import report_told

RESUMABLE_STATUS = 85
PREEMPTION_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
BEFORE_FIRST_UPDATE = (
    "preempted before the first update: nothing is lost; start it again with the same command"
)
# A scheduler may signal every process of a job, and launchers pass on what they hear: a rank then hears one
# request several times.
_SAME_REQUEST_S = 2.0


class Preempted(SystemExit):
    """All ranks were told to stop, and have saved what they need to go on."""

    def __init__(self) -> None:
        super().__init__(RESUMABLE_STATUS)


class _Requests:
    """What this process has been asked, and when it heeds it."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.training = self.over = False

    def take(self, number: int) -> None:
        """Take a signal into account; called in a thread of its own."""
        if self.over:
            return
        if not self.training:
            if not launched_rank():
                print(BEFORE_FIRST_UPDATE, flush=True)
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


@contextmanager
def heed_preemption() -> Iterator[None]:
    """Take SIGTERM and SIGUSR1 as requests to stop, but those that the parent had this process ignore.

    Outside of the main thread, which alone may do so, nothing is changed.
    """
    global _requests  # noqa: PLW0603
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requests = _Requests()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=_listen, args=(reader, _requests), daemon=True).start()
    # Python calls its handlers between two instructions of the main thread, which may be in a long
    # computation or wait for other ranks; this tells the thread at once.
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    heeded = [number for number in PREEMPTION_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _nothing) for number in heeded}
    for number in heeded:
        # Libraries in C go on with what they wait for.
        signal.siginterrupt(number, False)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        writer.close()


@contextmanager
def requests_wait() -> Iterator[None]:
    """Only note a request inside, for `told_to_stop`; afterwards requests change nothing any more."""
    _requests.training = True
    try:
        yield
    finally:
        _requests.over = True


def told_to_stop() -> bool:
    """Whether this rank has been asked to stop."""
    return _requests.first is not None


def _listen(reader: socket.socket, requests: _Requests) -> None:
    with reader:
        while number := reader.recv(1):
            # Other signals that have handlers in Python come here, too.
            if number[0] in PREEMPTION_SIGNALS:
                requests.take(number[0])


def _nothing(number: int, frame: FrameType | None) -> None:
    del number, frame
