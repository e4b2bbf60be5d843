"""Learning-rate schedules against closed forms and against Transformers'."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
)
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup

from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.job_spec import parse_spec
from hvdtrain.core.spec.optimizer_sections import ScheduleSpec
from hvdtrain.core.update.schedules import check_peak, schedule_factor

PEAK = 2e-3
LINEAR, COSINE, CONSTANT = (ScheduleSpec(type=kind) for kind in ("linear", "cosine", "constant"))  # type: ignore[arg-type]
SCHEDULES = [
    LINEAR,
    COSINE,
    CONSTANT,
    ScheduleSpec(type="constant_with_warmup"),
    ScheduleSpec(type="cosine_with_min_lr", min_lr=1e-4),
    ScheduleSpec(type="cosine_with_min_lr", min_lr_rate=0.1),
    ScheduleSpec(type="inverse_sqrt"),
    ScheduleSpec(type="inverse_sqrt", timescale=3),
    ScheduleSpec(type="polynomial"),
    ScheduleSpec(type="polynomial", power=2.5, lr_end=1e-4),
]
RUNS = st.tuples(st.integers(0, 50), st.integers(1, 200)).map(lambda run: (run[0], run[0] + run[1]))
Scheduler = torch.optim.lr_scheduler.LambdaLR

every = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.type)


@every
@given(RUNS)
def test_warm_up_rises_in_equal_steps_to_the_peak(schedule: ScheduleSpec, run: tuple[int, int]) -> None:
    warmup, total = run
    found = [schedule_factor(schedule, update, warmup, total, PEAK) for update in range(warmup)]
    assert found == [number / warmup for number in range(1, warmup + 1)]


@given(RUNS)
def test_after_warm_up_each_kind_follows_its_closed_form(run: tuple[int, int]) -> None:
    warmup, total = run
    for update in range(warmup, total):
        done = (update - warmup) / (total - warmup)
        linear, cosine, constant = (
            schedule_factor(s, update, warmup, total, PEAK) for s in (LINEAR, COSINE, CONSTANT)
        )
        assert math.isclose(linear, (total - update) / (total - warmup), rel_tol=1e-12)
        assert math.isclose(cosine, math.cos(math.pi * done / 2) ** 2, rel_tol=1e-9, abs_tol=1e-15)
        assert constant == 1.0


@every
@given(RUNS)
def test_it_falls_from_the_peak_and_every_update_learns(schedule: ScheduleSpec, run: tuple[int, int]) -> None:
    warmup, total = run
    factors = [schedule_factor(schedule, update, warmup, total, PEAK) for update in range(total)]
    assert factors[warmup] == pytest.approx(1.0, rel=1e-15)
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert all(0.0 < factor <= 1.0 for factor in factors)


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (LINEAR, 0.0),
        (COSINE, 0.0),
        (ScheduleSpec(type="cosine_with_min_lr", min_lr=1e-4), 1e-4),
        (ScheduleSpec(type="cosine_with_min_lr", min_lr=0.0), 0.0),
        (ScheduleSpec(type="cosine_with_min_lr", min_lr_rate=0.25), 0.25 * PEAK),
        (ScheduleSpec(type="polynomial"), 1e-7),
        (ScheduleSpec(type="polynomial", lr_end=0.0, power=3.0), 0.0),
    ],
)
def test_it_reaches_its_end_and_stays_there(schedule: ScheduleSpec, end: float) -> None:
    found = [PEAK * schedule_factor(schedule, update, 5, 20, PEAK) for update in (20, 21, 1000)]
    assert found == pytest.approx([end] * 3, rel=1e-12)


def test_a_run_that_is_all_warm_up_has_no_decay() -> None:
    assert [schedule_factor(LINEAR, update, 4, 4, PEAK) for update in range(4)] == [0.25, 0.5, 0.75, 1.0]


def theirs(schedule: ScheduleSpec) -> Callable[[Any, int, int], Scheduler]:
    """Transformers' function of this type and fields, of an optimizer, warm-up and updates."""
    least = {"min_lr": schedule.min_lr, "min_lr_rate": schedule.min_lr_rate}
    fall = {"power": schedule.power, "lr_end": schedule.lr_end}
    return {
        "linear": get_linear_schedule_with_warmup,
        "cosine": get_cosine_schedule_with_warmup,
        "constant": lambda o, w, t: get_constant_schedule_with_warmup(o, w),
        "constant_with_warmup": lambda o, w, t: get_constant_schedule_with_warmup(o, w),
        "cosine_with_min_lr": lambda o, w, t: get_cosine_with_min_lr_schedule_with_warmup(o, w, t, **least),
        "inverse_sqrt": lambda o, w, t: get_inverse_sqrt_schedule(o, w, schedule.timescale),
        "polynomial": lambda o, w, t: get_polynomial_decay_schedule_with_warmup(o, w, t, **fall),
    }[schedule.type]


@every
@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_it_is_transformers(schedule: ScheduleSpec, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = theirs(schedule)(optimizer, warmup, 40)
    rates = []
    for _ in range(40):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = [PEAK * schedule_factor(schedule, update, warmup, 40, PEAK) for update in range(40)]
    # Theirs starts warm-up at 0, ours at the first rise: one update ahead until the peak.
    assert ours[:warmup] == pytest.approx(rates[1 : warmup + 1], rel=1e-12)
    assert ours[warmup:] == pytest.approx(rates[warmup:], rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        (ScheduleSpec(type="polynomial", lr_end=0.01), r"schedule\.lr_end: 0\.01 must be below .* 0\.002"),
        (ScheduleSpec(type="cosine_with_min_lr", min_lr=0.002), r"schedule\.min_lr: 0\.002 must be below"),
    ],
)
def test_an_end_above_the_peak_is_refused(schedule: ScheduleSpec, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        check_peak(schedule, PEAK)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ("{type: cosine_with_min_lr}", "either min_lr or min_lr_rate"),
        ("{type: cosine_with_min_lr, min_lr: 0.0, min_lr_rate: 0.1}", "either min_lr or min_lr_rate"),
        ("{type: cosine, min_lr: 0.0}", "schedule: min_lr 0 is for type cosine_with_min_lr alone"),
        ("{type: linear, power: 2.0}", "schedule: power 2 is for type polynomial alone, and type is linear"),
        ("{timescale: 100}", "timescale 100 is for type inverse_sqrt alone"),
        ("{type: polynomial, power: 0.0}", "schedule.power"),
    ],
)
def test_fields_of_another_type_are_refused(section: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        parse_spec(
            "{model: {}, data: {corpus: python-docs}, batch: {per_device_train_batch_size: 1}, max_steps: 9}",
            [f"schedule={section}"],
        )


@every
def test_a_schedule_can_be_read_from_what_was_written(schedule: ScheduleSpec) -> None:
    assert ScheduleSpec.model_validate_json(schedule.model_dump_json()) == schedule
