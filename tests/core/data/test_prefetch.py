"""The background thread: same items, same errors, and it always ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count, islice

import pytest

from hvdtrain.core.data.prefetch import Prefetcher

depths = pytest.mark.parametrize("depth", [0, 1, 4])


def threads() -> int:
    return sum(thread.name == "hvdtrain-prefetch" for thread in threading.enumerate())


@depths
def test_items_come_in_order_and_end(depth: int) -> None:
    prefetcher = Prefetcher(iter(range(20)), depth)
    assert list(prefetcher) == list(range(20))
    with pytest.raises(StopIteration):
        next(prefetcher)


@depths
def test_error_comes_where_its_item_would_have(depth: int) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise KeyError("broken sample")

    prefetcher = Prefetcher(source(), depth)
    assert next(prefetcher) == 1
    with pytest.raises(KeyError, match="broken sample"):
        next(prefetcher)


def test_no_more_is_made_ahead_than_asked_for() -> None:
    made: list[int] = []
    source = (made.append(i) or i for i in count())
    with Prefetcher(source, 3) as prefetcher:
        assert [next(prefetcher) for _ in range(5)] == list(range(5))
        # Five taken, three ready, one that waits for room.
        assert len(made) <= 9
    assert threads() == 0


def test_close_ends_a_thread_that_waits_for_room() -> None:
    prefetcher = Prefetcher(count(), 1)
    assert list(islice(prefetcher, 2)) == [0, 1]
    prefetcher.close()
    prefetcher.close()
    assert threads() == 0
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_forgotten_prefetcher_ends_its_thread() -> None:
    prefetcher = Prefetcher(count(), 2)
    next(prefetcher)
    assert threads() == 1
    del prefetcher
    gc.collect()
    assert threads() == 0


@pytest.mark.parametrize("ending", ["", "raise SystemExit(7)", "raise ValueError('mine')"])
def test_interpreter_exits_while_the_thread_works(ending: str) -> None:
    program = (
        "from itertools import count\nfrom hvdtrain.core.data.prefetch import Prefetcher\n"
        f"p = Prefetcher(count(), 2)\nnext(p)\n{ending}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == {"": 0, "raise SystemExit(7)": 7}.get(ending, 1)
    assert "Fatal" not in done.stderr
