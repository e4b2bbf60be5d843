"""Who is named when ranks stop: the judgement, and the wire between threads that stand for ranks."""

from __future__ import annotations

import queue
import time
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core import stall
from hvdtrain.core.stall import StallWatch, Standing, verdict


def test_ranks_behind_the_furthest_are_named_when_nobody_comes_further() -> None:
    standings = {0: Standing(7), 1: Standing(6), 2: Standing(7), 3: Standing(5)}
    assert verdict(standings, still=9.0, timeout=10.0) is None
    assert "ranks 1, 3 stopped answering" in (verdict(standings, still=11.0, timeout=10.0) or "")


def test_a_lost_rank_is_named_at_once() -> None:
    standings = {0: Standing(7), 1: Standing(7, connected=False)}
    assert "rank 1 ended" in (verdict(standings, still=0.0, timeout=10.0) or "")


def test_a_rank_that_has_left_is_named_when_others_wait() -> None:
    standings = {0: Standing(8), 1: Standing(6, done=True)}
    assert "rank 1 left training" in (verdict(standings, still=11.0, timeout=10.0) or "")


@given(
    progress=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    done=st.booleans(),
    still=st.floats(0.0, 100.0),
)
def test_nobody_is_named_who_is_where_all_are(progress: list[int], done: bool, still: float) -> None:
    together = {rank: Standing(3, done=done) for rank in range(len(progress))}
    assert verdict(together, still, timeout=10.0) is None
    apart = {rank: Standing(p) for rank, p in enumerate(progress)}
    told = verdict(apart, still, timeout=10.0)
    behind = [rank for rank, p in enumerate(progress) if p < max(progress)]
    assert bool(told) == (bool(behind) and still >= 10.0)
    assert not told or all(str(rank) in told for rank in behind)


def test_all_ranks_are_told_by_wire(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(stall, "_SECONDS_BETWEEN_REPORTS", 0.02)
    place: list[bytes] = []
    told: queue.Queue[tuple[int, str]] = queue.Queue()

    def share(mine: bytes) -> bytes:
        place.append(mine)
        return place[0]

    def stop(rank: int, message: str) -> None:
        told.put((rank, message))

    watches = [StallWatch(rank, 3, 0.3, share, partial(stop, rank)) for rank in range(3)]
    for step in range(20):
        for watch in watches:
            watch.progress = step + (watch is not watches[1])
        time.sleep(0.01)
    found = dict(told.get(timeout=30) for _ in watches)
    assert all("rank 1 stopped answering" in message for message in found.values())
    assert sorted(found) == [0, 1, 2]
