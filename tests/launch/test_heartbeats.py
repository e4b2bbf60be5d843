"""Heartbeats: taken out of what is shown wherever they stand, and what their absence tells."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.process.heartbeat import Beat
from hvdtrain.launch.heartbeats import Heartbeats
from hvdtrain.launch.output import LineSplitter

# Rank 1 is told to stop.
BEATS = ("\x1612 7 5\n", "\x1612 7 5 told\n")
# Each piece is what a rank writes in one call; a heartbeat may come between any two.
WRITTEN = (("", "one\n", "two ", "and three\n"), ("bar 1\r", "", "bar 2\r", "end\n"))


@given(data=st.data(), by_open_mpi=st.booleans())
def test_they_are_taken_out_wherever_they_stand(data: st.DataObject, by_open_mpi: bool) -> None:
    streams, expected = [], {}
    for rank, pieces in enumerate(WRITTEN):
        beats = data.draw(st.lists(st.integers(0, 2), min_size=len(pieces), max_size=len(pieces)))
        written = "".join(piece + BEATS[rank] * count for piece, count in zip(pieces, beats, strict=True))
        streams.append(written.splitlines(keepends=True))
        expected[rank] = sum(beats)
    tag = "[1,{}]<stderr>:" if by_open_mpi else "[{}]<stderr>:"
    text = ""
    while any(streams):
        rank = data.draw(st.sampled_from([rank for rank, parts in enumerate(streams) if parts]))
        text += tag.format(rank) + streams[rank].pop(0)
    heard: list[tuple[int, Beat]] = []
    splitter = LineSplitter(lambda rank, beat: heard.append((rank, beat)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    lines = [line for a, b in pairwise([0, *cuts, len(text)]) for line in splitter.feed(text[a:b])]
    lines += splitter.close()
    assert {rank: heard.count((rank, Beat(12, 7, 5, told=bool(rank)))) for rank in expected} == expected
    assert len(heard) == sum(expected.values())
    shown = {rank: "".join(line.text for line in lines if line.rank == rank) for rank in expected}
    assert shown == {rank: "".join(pieces) for rank, pieces in enumerate(WRITTEN)}


def test_silence_of_some_counts_from_the_first_heartbeat_and_that_of_all_from_the_start() -> None:
    heard = Heartbeats(3)
    heard.let_pass(99.0, False)
    assert heard.silent(100.0) == []
    heard.let_pass(1.0, False)
    assert heard.silent(100.0) == [0, 1, 2]
    assert heard.suspects == ()
    heard.hear(0, Beat(1, -1))
    assert heard.silent(1.0) == []
    for _ in range(30):
        heard.let_pass(1.0, False)
        heard.hear(0, Beat(1, -1))
        heard.hear(1, Beat(1, -1))
    # Rank 2 has never come.
    assert heard.silent(30.0) == [2]
    assert heard.suspects == [2]
    heard.hear(2, Beat(1, -1))
    assert heard.silent(30.0) == []


def test_who_was_silent_before_a_failure_is_suspected_and_not_who_ends_because_of_it() -> None:
    heard = Heartbeats(3)
    for rank in range(3):
        heard.hear(rank, Beat(rank, 4))
    for _ in range(20):
        heard.let_pass(1.0, False)
        heard.hear(0, Beat(0, 4))
        heard.hear(1, Beat(1, 4))
    for _ in range(20):
        heard.let_pass(1.0, True)
    assert heard.suspects == [2]
    quick = Heartbeats(2)
    quick.hear(0, Beat(0, 4))
    for _ in range(20):
        quick.let_pass(1.0, True)
    assert not quick.suspects


def test_updates_are_noted_with_their_times() -> None:
    times = iter((10.0, 14.0, 15.0))
    heard = Heartbeats(2, lambda: next(times))
    assert (heard.begun, heard.first_update_at, heard.last_update_at) == (None, None, 10.0)
    for rank, step in ((0, -1), (1, 20), (0, 20), (0, 21), (1, 23)):
        heard.hear(rank, Beat(1, step))
    # Another rank may be told of a step later.
    heard.hear(0, Beat(1, 22))
    assert (heard.begun, heard.step) == (20, 23)
    assert (heard.first_update_at, heard.last_update_at) == (14.0, 15.0)
