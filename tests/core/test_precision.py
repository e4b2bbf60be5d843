"""The loss scale as a state machine, and what the plan says of 16-bit types."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.spec.job_spec import JobSpec, parse_spec
from hvdtrain.core.spec.sections import LARGEST_LOSS_SCALE, LossScaleSpec
from hvdtrain.core.update.precision import LossScale, compute_dtype, cpu_notes

SPEC: dict[str, Any] = {
    "model": {},
    "data": {"corpus": "python-docs"},
    "batch": {"per_device_train_batch_size": 4},
    "max_steps": 100,
}


def spec(*overrides: str) -> JobSpec:
    return parse_spec(yaml.safe_dump(SPEC), overrides)


def walked(scale: LossScale, finite: list[bool]) -> LossScale:
    for found in finite:
        scale = scale.after(found)
    return scale


UPDATES = st.lists(st.booleans(), max_size=60)
EXPONENTS = st.integers(1, 4)


@given(UPDATES, st.integers(1, 7), EXPONENTS, EXPONENTS)
def test_the_exponent_counts_growths_and_falls(finite: list[bool], interval: int, up: int, down: int) -> None:
    rule = LossScaleSpec(
        initial=2.0**16,
        growth_factor=2.0**up,
        backoff_factor=2.0**-down,
        growth_interval=interval,
        minimum=2.0**-900,
    )
    exponent, streak = 16, 0
    for found in finite:
        streak = streak + 1 if found else 0
        if not found:
            exponent -= down
        elif streak % interval == 0:
            exponent = min(exponent + up, 64)
            streak = 0
    found = walked(LossScale(2.0**16, rule=rule), finite)
    assert (found.value, found.good_updates) == (2.0**exponent, streak)
    assert LARGEST_LOSS_SCALE == 2.0**64


@given(UPDATES)
def test_pytorchs_grad_scaler_has_the_same_scales(finite: list[bool]) -> None:
    import torch

    scale, tracker = torch.tensor(2.0**16), torch.tensor(0, dtype=torch.int32)
    ours = LossScale(2.0**16, rule=LossScaleSpec(growth_interval=5, minimum=2.0**-100))
    for found in finite:
        torch._amp_update_scale_(scale, tracker, torch.tensor(0.0 if found else 1.0), 2.0, 0.5, 5)
        ours = ours.after(found)
        assert (ours.value, ours.good_updates) == (scale.item(), tracker.item())


def test_it_falls_to_its_floor_and_no_further() -> None:
    scale = LossScale.of_spec(spec("mixed_precision=fp16", "loss_scale={initial: 4, minimum: 2}"))
    assert scale.can_fall
    assert not scale.after(False).can_fall
    assert scale.after(False).value == 2.0


@given(UPDATES)
def test_a_fixed_scale_and_none_stay_what_they_are(finite: list[bool]) -> None:
    fixed = LossScale.of_spec(spec("mixed_precision=fp16", "loss_scale.fixed=1024"))
    assert (fixed.value, fixed.can_fall) == (1024.0, True)
    for scale in (fixed, LossScale.of_spec(spec("mixed_precision=bf16")), LossScale.of_spec(spec())):
        assert walked(scale, finite) == scale
    assert LossScale.of_spec(spec("loss_scale.fixed=1024")).value == 1.0


def test_it_is_restored_where_it_changes() -> None:
    changing, constant = LossScale.of_spec(spec("mixed_precision=fp16")), LossScale()
    found = changing.restored(256.0, 7)
    assert (found.value, found.good_updates, found.rule) == (256.0, 7, changing.rule)
    # A run in float32 that goes on in float16 starts as any other.
    assert changing.restored(0.0, 0) == changing
    assert constant.restored(256.0, 7) == constant


@pytest.mark.parametrize(("chosen", "dtype"), [("no", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_the_dtype_of_products(chosen: str, dtype: str) -> None:
    assert compute_dtype(spec(f"mixed_precision={chosen}")) == dtype
    assert compute_dtype(spec("model.dtype=float64")) == "float64"


@pytest.mark.parametrize(
    ("chosen", "flags", "noted"),
    [
        ("fp16", {"avx2", "avx512_bf16"}, True),
        ("fp16", {"avx2", "avx512_fp16"}, False),
        ("fp16", {"amx_fp16"}, False),
        ("bf16", {"avx2"}, True),
        ("bf16", {"avx512_bf16"}, False),
        ("no", {"avx2"}, False),
        ("fp16", set(), False),
    ],
)
def test_a_cpu_that_is_slow_in_a_type_is_noted(chosen: str, flags: set[str], noted: bool) -> None:
    found = cpu_notes(spec(f"mixed_precision={chosen}"), flags)
    assert len(found) == noted
    assert all(f"mixed_precision: {chosen}: this CPU has neither" in note for note in found)
