"""Preemption of loops, on ranks that run many tests: what those of both frameworks share."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hvdtrain.core.process import preemption


def tell(number: int = signal.SIGTERM) -> None:
    """Have this rank told to stop, by a signal; returns when it has noted it."""
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + 60
    while not preemption.told_to_stop():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.001)


@contextmanager
def preempted() -> Iterator[None]:
    """Inside, ranks leave as those that were told to stop; for later tests this process forgets it."""
    with pytest.raises(SystemExit) as caught:
        yield
    assert caught.value.code == 85
    forget()


def forget() -> None:
    """What this process was told is no more."""
    requests = preemption._requests
    requests.first, requests.training, requests.over = None, False, False
