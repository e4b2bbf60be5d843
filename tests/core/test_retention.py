"""Which checkpoints are kept: against a reading of the rules that deletes one at a time."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.checkpoints.retention import Retention

VALUES = st.one_of(st.none(), st.just(math.nan), st.integers(-3, 3).map(float))
FOUND = st.dictionaries(st.integers(1, 30), st.builds(lambda value: {"eval_loss": value}, VALUES), max_size=9)
RETENTIONS = st.builds(
    Retention, st.none() | st.integers(1, 10), st.none() | st.just("eval_loss"), st.booleans()
)


@given(FOUND, RETENTIONS, st.booleans())
def test_the_best_is_the_earliest_of_those_that_no_other_beats(
    found: dict[int, dict[str, float]], retention: Retention, extra: bool
) -> None:
    best = retention.best({step: metrics | {"loss": -9.0} for step, metrics in found.items()})
    sign = -1.0 if retention.greater_is_better else 1.0
    numbers = {
        step: sign * m["eval_loss"]
        for step, m in found.items()
        if m["eval_loss"] is not None and not math.isnan(m["eval_loss"])
    }
    if retention.metric is None or not numbers:
        assert best is None
        return
    assert best is not None
    assert all(numbers[best] < numbers[step] for step in numbers if step < best)
    assert all(numbers[best] <= numbers[step] for step in numbers if step > best)


@given(FOUND, RETENTIONS)
def test_as_many_are_kept_as_may_be_and_the_newest_and_the_best_always(
    found: dict[int, dict[str, float]], retention: Retention
) -> None:
    gone = retention.surplus(found)
    kept = found.keys() - set(gone)
    assert len(gone) == len(set(gone))
    if retention.limit is None or not found:
        assert not gone
        return
    best = retention.best(found)
    needed = {max(found), best} - {None}
    assert needed <= kept
    assert len(kept) == min(len(found), max(retention.limit, len(needed)))
    # Nothing that goes is newer than something that stays for its age alone.
    assert not gone or max(gone) < min(kept - {best}, default=31)
    assert gone == sorted(gone)


@given(FOUND, RETENTIONS, st.integers(1, 30))
def test_what_is_later_than_the_newest_is_of_another_process_and_changes_nothing(
    found: dict[int, dict[str, float]], retention: Retention, newest: int
) -> None:
    own = {step: metrics for step, metrics in found.items() if step <= newest}
    assert retention.surplus(found, newest) == retention.surplus(own, newest)


@given(FOUND, RETENTIONS)
def test_one_after_the_other_and_all_at_once_keep_the_same(
    found: dict[int, dict[str, float]], retention: Retention
) -> None:
    """A run that rotates after each save ends with what one that never did would keep, but for the best."""
    plain = Retention(retention.limit)
    held: dict[int, dict[str, float]] = {}
    for step in sorted(found):
        held[step] = found[step]
        for gone in plain.surplus(held, step):
            del held[gone]
    assert held.keys() == found.keys() - set(plain.surplus(found))
    # The best of all is never lost on the way, since it is the best of those that are there.
    held = {}
    for step in sorted(found):
        held[step] = found[step]
        for gone in retention.surplus(held, step):
            del held[gone]
    assert retention.best(found) in held or retention.best(found) is None
