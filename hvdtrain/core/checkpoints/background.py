"""Writing a checkpoint in a thread of its own while training goes on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

# The lowest: training has the processor first.
_NICENESS = 19


class BackgroundWriter:
    """Runs one write at a time in a background thread; what it writes must not change meanwhile.

    An error of the thread is raised once, by the next call. A process that ends in good order ends after the
    thread.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Wait; where an error is on its way, one of the thread is not raised beside it."""
        self._join()
        if error is None:
            self.check()

    def submit(self, write: Callable[[], None]) -> None:
        """Start a write; waits for the one before it.

        Args:
            write: called in the thread. It holds all that it needs, and is dropped when it is done.

        Raises:
            Exception: what the write before it has raised; this one is not started then.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint-writer")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a write that has failed; does not wait for one that is under way."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until everything is on disk, and raise as `check` does."""
        self._join()
        self.check()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, write: Callable[[], None]) -> None:
        with suppress(OSError):
            # On Linux it is of this thread alone; others may have no such thing.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            write()
        except BaseException as error:
            self._error = error
