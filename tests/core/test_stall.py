"""Who is named when ranks stop: the judgement, and the wire between threads that stand for ranks."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run import stall
from hvdtrain.core.run.stall import StallWatch, Standing, verdict


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


class Fleet:
    """Threads that stand for ranks; rank 1 is behind the others."""

    def __init__(self, ranks: int) -> None:
        self.told: queue.Queue[tuple[int, str]] = queue.Queue()
        self.place: list[bytes] = []
        self.watches = [StallWatch(0, ranks, 0.3, self.share, partial(self.stop, 0))]
        self.ranks = ranks

    def share(self, mine: bytes) -> bytes:
        self.place.append(mine)
        return self.place[0]

    def stop(self, rank: int, message: str) -> None:
        self.told.put((rank, message))

    @property
    def address(self) -> tuple[str, int]:
        place = json.loads(self.place[0])
        return place["host"], place["port"]

    def join(self) -> None:
        self.watches += [
            StallWatch(rank, self.ranks, 0.3, self.share, partial(self.stop, rank))
            for rank in range(1, self.ranks)
        ]

    def verdicts(self) -> dict[int, str]:
        for step in range(20):
            for watch in self.watches:
                watch.progress = step + (watch is not self.watches[1])
            time.sleep(0.01)
        return dict(self.told.get(timeout=30) for _ in self.watches)


def test_all_ranks_are_told_by_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "_SECONDS_BETWEEN_REPORTS", 0.02)
    fleet = Fleet(3)
    fleet.join()
    found = fleet.verdicts()
    assert all("rank 1 stopped answering" in message for message in found.values())
    assert sorted(found) == [0, 1, 2]


def converse(address: tuple[str, int], said: bytes) -> bytes:
    """Says something, and gives all that is answered."""
    answer = b""
    with suppress(OSError), socket.create_connection(address, 30) as link:
        link.sendall(said)
        link.shutdown(socket.SHUT_WR)
        while piece := link.recv(4096):
            answer += piece
    return answer


def test_strangers_take_no_ranks_place_and_are_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "_SECONDS_BETWEEN_REPORTS", 0.02)
    monkeypatch.setattr(stall, "_SECONDS_TO_CONNECT", 120.0)
    fleet = Fleet(2)
    # Silent ones, more than there are ranks, are there all the time.
    silent = [socket.create_connection(fleet.address, 30) for _ in range(8)]
    claims = st.fixed_dictionaries(
        {"rank": st.integers(-1, 3)},
        optional={
            "proof": st.text("0123456789abcdef", max_size=64) | st.integers(),
            "challenge": st.text(max_size=9),
            "progress": st.integers(),
            "done": st.booleans(),
        },
    )

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=200) | claims.map(lambda claim: json.dumps(claim).encode() + b"\n"))
    def strange(said: bytes) -> None:
        # A challenge, which tells nothing; whoever does not answer it is cut off.
        assert len(converse(fleet.address, said)) in (0, 67)

    strange()
    converse(fleet.address, b"x" * 100_000)
    fleet.join()
    found = fleet.verdicts()
    assert sorted(found) == [0, 1]
    assert all("rank 1 stopped answering" in message for message in found.values())
    for link in silent:
        link.close()


def test_nobody_listens_once_all_ranks_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stall, "_SECONDS_BETWEEN_REPORTS", 0.02)
    fleet = Fleet(2)
    fleet.join()
    fleet.verdicts()
    with pytest.raises(ConnectionError):
        socket.create_connection(fleet.address, 30)


def test_a_rank_believes_no_stranger_in_rank_0s_place() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = {"host": "127.0.0.1", "port": listener.getsockname()[1], "key": "00" * 32}

        def pretend() -> None:
            link, _ = listener.accept()
            with link:
                link.sendall(b'"challenge"\n')
                link.recv(4096)
                link.sendall(b'"' + b"0" * 64 + b'"\n')
                link.recv(4096)

        threading.Thread(target=pretend, daemon=True).start()
        with pytest.raises(TrainingError, match="does not know this job's secret"):
            StallWatch(1, 2, 1.0, lambda _: json.dumps(place).encode(), print)
