"""Progress: the time that is left is that of the updates to come, also in a run that goes on."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.run.progress import Pace, Progress

LINE = {
    "loss": 1.5,
    "step_time_s": 0.02,
    "skipped_updates": 0,
    "empty_updates": 0,
    "loss_scale": 1.0,
}


@given(
    done=st.integers(0, 10**6),
    ahead=st.integers(2, 10**4),
    period=st.integers(1, 50),
    compiling=st.floats(0.0, 1e4),
    seconds=st.floats(1e-4, 100.0),
)
def test_steady_updates_leave_what_they_take(
    done: int, ahead: int, period: int, compiling: float, seconds: float
) -> None:
    """Whatever an earlier process has done, and however long the first update compiles."""
    pace, now = Pace(done + ahead), compiling
    steps = [*range(done + period, done + ahead, period), done + ahead]
    assert pace.seconds_left(steps[0], now) is None
    for before, step in itertools.pairwise(steps):
        now += (step - before) * seconds
        assert pace.seconds_left(step, now) == pytest.approx((done + ahead - step) * seconds, abs=1e-5)


def test_the_first_line_of_a_run_that_goes_on_does_not_guess(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1000, done=990) as progress:
        progress.update(991, LINE)
        progress.update(1000, LINE | {"loss": None, "skipped_updates": 3, "empty_updates": 1})
    first, last = capsys.readouterr().out.splitlines()
    assert first == "step 991/1000  loss 1.5000  20 ms/update"
    skips = "3 skipped, 1 of them with nothing to predict, loss scale 1"
    assert last == f"step 1000/1000  no loss  20 ms/update  {skips}  0 s left"


def test_the_bar_starts_where_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("HOROVOD_RANK", "0")
    with Progress(1000, done=990) as progress:
        assert progress._bar is not None
        (task,) = progress._bar.tasks
        assert (task.completed, task.total) == (990, 1000)
        progress.update(991, LINE)
        assert (task.completed, task.description) == (991, "loss 1.5000  20 ms/update")
        progress.update(992, LINE)
        assert task.description.endswith(" left")
