"""Which jobs an attendant ends: those of which it hears nothing, or nothing new."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hvdtrain.core.process.heartbeat import Beat
from hvdtrain.launch.attendants import ElasticAttendant
from hvdtrain.launch.hosts import parse_hosts


@pytest.mark.parametrize(("steps", "seconds"), [((-1, -1), 120), ((4, 4), 120), ((4, 5), 30)])
def test_silence_ends_the_job(steps: Sequence[int], seconds: int) -> None:
    attendant = ElasticAttendant(parse_hosts("a:1,b:2"), lambda heard: None, 30.0, 1800.0, lambda: None)
    for step in steps:
        attendant.heartbeats.hear(0, Beat(1, step))
    for _ in range(seconds):
        assert attendant.look(lambda: None) is None
        attendant.heartbeats.let_pass(1.0, failed=False)
        attendant.heartbeats.hear(0, Beat(1, steps[-1]))
    ending = attendant.look(lambda: None)
    assert ending is not None
    assert (ending.status, ending.ranks) == (255, (1, 2))
    assert str(ending.told).startswith(f"nothing was heard from b (ranks 1, 2) for {seconds} s")


def test_a_job_of_which_nothing_is_ever_heard_is_ended_and_no_host_is_blamed() -> None:
    attendant = ElasticAttendant(parse_hosts("a:1,b:1"), lambda heard: None, 30.0, 1800.0, lambda: None)
    attendant.heartbeats.let_pass(119.0, failed=False)
    assert attendant.look(lambda: None) is None
    attendant.heartbeats.let_pass(1.0, failed=False)
    ending = attendant.look(lambda: None)
    assert ending is not None
    assert (ending.status, ending.ranks) == (255, ())
    assert str(ending.told).startswith("nothing was heard from a, b (ranks 0, 1) for 120 s")


@pytest.mark.parametrize(("steps", "seconds"), [((-1, -1), 400), ((4, 4), 400), ((4, 5), 100)])
def test_ranks_that_live_and_wait_for_each_other_are_ended(steps: Sequence[int], seconds: int) -> None:
    attendant = ElasticAttendant(parse_hosts("a:1,b:1"), lambda heard: None, 30.0, 100.0, lambda: None)
    for work, step in enumerate(steps):
        attendant.heartbeats.hear(0, Beat(1, step, work))
    # One of them evaluates for a long time.
    for work in range(3, 1000):
        attendant.heartbeats.let_pass(1.0, failed=False)
        attendant.heartbeats.hear(0, Beat(1, steps[-1], 2))
        attendant.heartbeats.hear(1, Beat(1, steps[-1], work))
        assert attendant.look(lambda: None) is None
    for _ in range(seconds):
        assert attendant.look(lambda: None) is None
        attendant.heartbeats.let_pass(1.0, failed=False)
        for rank in range(2):
            attendant.heartbeats.hear(rank, Beat(1, steps[-1], 2 + 997 * rank))
    ending = attendant.look(lambda: None)
    assert ending is not None
    assert (ending.status, ending.ranks, attendant.hung) == (255, (), True)
    assert ending.told == f"no rank has made progress for {seconds} s (--stall-timeout)"


def test_ranks_that_leave_because_one_was_told_to_are_not_told_again() -> None:
    """A second signal would end that one before it has saved."""
    hosts, told = parse_hosts("a:1,b:1"), list[bool]()
    attendant = ElasticAttendant(hosts, lambda heard: None, 30.0, 1800.0, lambda: "b is no longer offered")
    for step in (4, 5):
        attendant.heartbeats.hear(1, Beat(1, step, step, told=True))
    assert attendant.look(lambda: told.append(True)) is None
    assert not told
    assert attendant.regrouping is None
