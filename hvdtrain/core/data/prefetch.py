"""Batches made in the background, so that a step does not wait for its data."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, Queue
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_PATIENCE_S = 5.0


class Prefetcher(Generic[T]):
    """An iterator whose items are made ahead of time by a thread, in order.

    An error in the source is raised by the `next()` that would have given the item. The thread ends with the
    source, with `close()` (also as a context manager), when the prefetcher is forgotten, and when the
    interpreter exits.
    """

    def __init__(self, source: Iterator[T], depth: int) -> None:
        """Start making items.

        Args:
            source: where the items come from; only the thread uses it from now on.
            depth: items kept ready; 0 makes each when it is asked for, without a thread.
        """
        self._take: Callable[[], T] = source.__next__
        self._stop: Callable[[], object] | None = None
        if depth > 0:
            worker = _Worker(source, depth)
            self._take = worker.take
            self._stop = weakref.finalize(self, worker.stop)

    def __iter__(self) -> Prefetcher[T]:
        return self

    def __next__(self) -> T:
        return self._take()

    def close(self) -> None:
        """End the thread; `next()` raises StopIteration from now on, and a second call does nothing."""
        if self._stop is not None:
            self._stop()
        self._take = iter(()).__next__

    def __enter__(self) -> Prefetcher[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Worker(Generic[T]):
    """The thread and its queue; it must not know the Prefetcher, or that would never be forgotten."""

    def __init__(self, source: Iterator[T], depth: int) -> None:
        self._source = source
        self._ready: Queue[T | _Ended] = Queue(depth)
        self._stopped = threading.Event()
        self._ended: _Ended | None = None
        # A daemon, since Python joins other threads at exit before it lets anyone stop them.
        self._thread = threading.Thread(target=self._work, name="hvdtrain-prefetch", daemon=True)
        self._thread.start()

    def take(self) -> T:
        if self._ended is None:
            item = self._ready.get()
            if not isinstance(item, _Ended):
                return item
            self._ended = item
        raise self._ended.error or StopIteration

    def stop(self) -> None:
        self._stopped.set()
        # The thread may stand before a full queue: room lets it see that it should stop.
        with suppress(Empty):
            while True:
                self._ready.get_nowait()
        self._thread.join(_PATIENCE_S)

    def _work(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._source:
                self._ready.put(item)
                if self._stopped.is_set():
                    return
        except (
            BaseException
        ) as caught:  # whatever it is, the consumer must hear of it rather than wait for ever
            error = caught
        self._ready.put(_Ended(error))


class _Ended:
    """The source has no more items, by itself or by an error."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
