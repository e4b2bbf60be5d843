"""Learning-rate schedules against closed forms and against Transformers'."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from hvdtrain.core.errors import SpecError
from hvdtrain.core.update.schedules import schedule_factor

KINDS = ["linear", "cosine", "constant"]
RUNS = st.tuples(st.integers(0, 50), st.integers(1, 200)).map(lambda run: (run[0], run[0] + run[1]))


@pytest.mark.parametrize("kind", KINDS)
@given(RUNS)
def test_warm_up_rises_in_equal_steps_to_the_peak(kind: str, run: tuple[int, int]) -> None:
    warmup, total = run
    found = [schedule_factor(kind, update, warmup, total) for update in range(warmup)]
    assert found == [number / warmup for number in range(1, warmup + 1)]


@given(RUNS)
def test_after_warm_up_each_kind_follows_its_closed_form(run: tuple[int, int]) -> None:
    warmup, total = run
    for update in range(warmup, total):
        done = (update - warmup) / (total - warmup)
        linear, cosine, constant = (schedule_factor(kind, update, warmup, total) for kind in KINDS)
        assert math.isclose(linear, (total - update) / (total - warmup), rel_tol=1e-12)
        assert math.isclose(cosine, math.cos(math.pi * done / 2) ** 2, rel_tol=1e-9, abs_tol=1e-15)
        assert constant == 1.0


@pytest.mark.parametrize("kind", KINDS)
@given(RUNS)
def test_the_peak_is_held_at_the_boundary_and_every_update_learns(kind: str, run: tuple[int, int]) -> None:
    warmup, total = run
    factors = [schedule_factor(kind, update, warmup, total) for update in range(total)]
    assert factors[warmup] == 1.0
    assert all(0.0 < factor <= 1.0 for factor in factors)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_it_ends_at_zero_and_stays_there(kind: str) -> None:
    assert [schedule_factor(kind, update, 5, 20) for update in (20, 21, 1000)] == [0.0, 0.0, 0.0]


def test_a_run_that_is_all_warm_up_has_no_decay() -> None:
    assert [schedule_factor("linear", update, 4, 4) for update in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SpecError, match=r"schedule\.type: expected linear, cosine or constant, found 'step'"):
        schedule_factor("step", 3, 0, 10)


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        ("linear", lambda o: get_linear_schedule_with_warmup(o, 7, 40)),
        ("cosine", lambda o: get_cosine_schedule_with_warmup(o, 7, 40)),
        ("constant", lambda o: get_constant_schedule_with_warmup(o, 7)),
    ],
)
def test_transformers_agrees_where_the_definitions_coincide(
    kind: str, theirs: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LambdaLR]
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = theirs(optimizer)
    factors = []
    for _ in range(40):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [schedule_factor(kind, update, 7, 40) for update in range(40)]
    # Theirs starts warm-up at 0, ours at the first rise: one update ahead until the peak.
    assert ours[:7] == pytest.approx(factors[1:8], rel=1e-15)
    assert ours[7:] == pytest.approx(factors[7:], rel=1e-12)
