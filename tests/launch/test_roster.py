"""The blacklist of an elastic job, by Horovod's own, and the order of its hosts."""

from __future__ import annotations

import pytest
from horovod.runner.elastic import discovery
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.errors import LaunchError
from hvdtrain.launch.hosts import Host
from hvdtrain.launch.roster import Roster

NAMES = st.sampled_from("abcde")
HOSTS = st.dictionaries(NAMES, st.integers(1, 4))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    least=st.integers(1, 60),
    factor=st.integers(1, 60),
    draw=st.floats(0, 1),
    pauses=st.lists(st.floats(0, 3600), max_size=12),
)
def test_the_cooldown_is_horovods(least: int, factor: int, draw: float, pauses: list[float]) -> None:
    clock = Clock()
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(discovery.time, "time", clock)
        context.setattr(discovery.random, "uniform", lambda low, high: low + draw * (high - low))
        roster, theirs = Roster((least, least * factor), clock, lambda: draw), None
        theirs = discovery.HostState((least, least * factor))
        roster.update([Host("a", 1)])
        for pause in pauses:
            # A host that is on the blacklist is not used, and so does not fail.
            if not theirs._in_cooldown_period(clock.now):
                theirs.blacklist()
                roster.blacklist("a")
            clock.now += pause
            assert (roster.hosts() == ()) == theirs._in_cooldown_period(clock.now)


@given(names=st.lists(NAMES, max_size=3), later=st.floats(0, 1e9))
def test_without_a_cooldown_a_host_stays_out(names: list[str], later: float) -> None:
    clock = Clock()
    roster = Roster(None, clock)
    roster.update([Host(name, 2) for name in "abc"])
    assert all(roster.blacklist(name) is None for name in names)
    clock.now += later
    assert roster.hosts() == tuple(Host(name, 2) for name in "abc" if name not in names)


@given(lists=st.lists(HOSTS, max_size=5))
def test_hosts_that_stay_keep_their_order_and_new_ones_come_last(lists: list[dict[str, int]]) -> None:
    roster, before = Roster(), []
    for found in lists:
        roster.update([Host(name, slots) for name, slots in found.items()])
        names = [host.name for host in roster.hosts()]
        assert {host.name: host.slots for host in roster.hosts()} == found
        old = [name for name in before if name in found]
        assert names[: len(old)] == old
        before = names


@pytest.mark.parametrize("cooldown", [(0, 5), (5, 4), (1, 3601), (-1, -1)])
def test_a_cooldown_that_makes_no_sense_is_refused(cooldown: tuple[int, int]) -> None:
    with pytest.raises(LaunchError, match=f"--blacklist-cooldown-range {cooldown[0]} {cooldown[1]}: .*3600"):
        Roster(cooldown)
