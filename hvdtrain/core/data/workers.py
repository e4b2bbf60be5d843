"""Worker processes that draw samples ahead; which worker draws what changes nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from hvdtrain.core.errors import DataError
from hvdtrain.core.process.orphans import call_when_orphaned
from hvdtrain.core.process.preemption import IN_CHILDREN

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")

# Calls that each worker has in front of it, as PyTorch's `prefetch_factor`.
_CALLS_EACH = 2
# Ctrl-C reaches the whole group, and the parent answers for all.
_SIGNALS = {signal.SIGINT: signal.SIG_IGN, **IN_CHILDREN}
# What a worker's calls are given first; it has it from its parent's memory, so nothing has to be pickled.
_shared: Any = None


class Workers(Generic[S]):
    """Processes that run functions on a value they share; they end with this object or with this process."""

    def __init__(self, count: int, shared: S) -> None:
        """Fork the processes, all at once.

        They are copies of this process as it is now: files that are opened later are opened by each on its
        own.

        Args:
            count: number of processes; 0 runs functions in the thread that asks for a result.
            shared: first argument of every call.

        Raises:
            DataError: a process cannot be started, or ends at once.
        """
        self.count = count
        self._shared = shared
        self._alone = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        if count:
            # The fork context starts every process at the first call, before the pool has a thread.
            fork = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(count, fork, _begin, (shared, os.getpid()))
            # Each process is born with them blocked, until it has said what they do there.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                waiting = self.start(_nothing)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            waiting()

    @property
    def ahead(self) -> int:
        """Calls that keep all processes busy."""
        return _CALLS_EACH * self.count

    def start(
        self, function: Callable[Concatenate[S, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[], T]:
        """Begin a call.

        Args:
            function: a module's own, called with the shared value first.
            *args: small, for they are pickled; so is the result.
            **kwargs: likewise.

        Returns:
            A function that waits for the result and returns it, or raises what the call raised.

        Raises:
            DataError: also from the returned function: a process ended.
        """
        if self._pool is None:
            return partial(self._call_here, function, args, kwargs)
        try:
            return partial(_result, self._pool.submit(_call, function, args, kwargs))
        except (BrokenProcessPool, OSError) as error:
            raise _lost(error) from error
        except BaseException:
            # Ctrl-C in the middle: a call that the pool knows of and no process gets would be waited for at
            # exit, for ever.
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise

    def close(self) -> None:
        """End the processes after the calls they are at; later ones fail. A second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _call_here(self, function: Callable[..., T], args: Any, kwargs: Any) -> T:
        # One at a time: batches are made by a thread while another evaluates, and files have one position.
        with self._alone:
            return function(self._shared, *args, **kwargs)


def _result(future: Future[T]) -> T:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _lost(error) from error


def _lost(error: Exception) -> DataError:
    if isinstance(error, OSError):
        return DataError(f"data.dataloader_num_workers: a worker process cannot be started: {error.strerror}")
    return DataError(
        "data.dataloader_num_workers: a worker process ended while it drew samples: it was killed, ran out "
        "of memory, or crashed in native code; try fewer workers, or 0 to see where the dataset fails"
    )


def _begin(shared: Any, parent: int) -> None:
    """What a worker does first."""
    global _shared  # noqa: PLW0603
    _shared = shared
    for number, action in _SIGNALS.items():
        signal.signal(number, action)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    end = partial(os._exit, 1)
    call_when_orphaned(end)
    if os.getppid() != parent:
        end()
    if (torch := sys.modules.get("torch")) is not None:
        # The threads of the parent's OpenMP are not there after a fork; waiting for them would never end.
        torch.set_num_threads(1)


def _call(function: Callable[..., T], args: Any, kwargs: Any) -> T:
    return function(_shared, *args, **kwargs)


def _nothing(shared: object) -> None:
    del shared
