"""The wrappers' arguments: what is accepted, and a window's scales against a mean taken sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.compression import Fp16, NoCompression, PowerSGD
from hvdtrain.core.dropin import make_settings
from hvdtrain.core.errors import SpecError

# Samples of each rank's micro-batches; a rank's window may be shorter than another's.
windows = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=4)


def settings(**arguments):
    return make_settings("DistributedOptimizer", **arguments)


def test_defaults_are_horovods() -> None:
    found = settings()
    assert (found.compression, found.gradient_accumulation_steps) == (NoCompression(), 1)
    assert (found.max_grad_norm, found.average) == (None, "mean")


def test_compression_comes_as_a_name_a_mapping_or_a_list() -> None:
    assert settings(compression="fp16").compression == Fp16()
    assert settings(compression={"type": "powersgd", "matrix_approximation_rank": 4}).compression == PowerSGD(
        matrix_approximation_rank=4
    )
    first, second = settings(compression=[{"match": "head.*", "type": "none"}, {"type": "fp16"}]).compression
    assert (first.match, first.type, second.type) == ("head.*", "none", "fp16")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"compression": "fp61"}, ["compression.type", "fp61", "did you mean 'fp16'?"]),
        ({"compression": {"type": "topk", "ration": 0.1}}, ["compression.ration", "did you mean 'ratio'?"]),
        ({"compression": []}, ["compression", "empty list"]),
        ({"compression": "diloco"}, ["diloco", "hvdtrain run"]),
        ({"compression": object}, ["compression", "object"]),
        ({"gradient_accumulation_steps": 0}, ["gradient_accumulation_steps", "found 0"]),
        ({"gradient_accumulation_steps": 2.5}, ["gradient_accumulation_steps", "found 2.5"]),
        ({"max_grad_norm": -1.0}, ["max_grad_norm", "found -1.0"]),
        ({"average": "sampels"}, ["average", "did you mean 'samples'?"]),
        ({"bucket_cap_mb": "big"}, ["bucket_cap_mb", "found 'big'"]),
        ({"zero_stage": 2}, ["zero_stage: expected 0 or 1 (found 2)", "hvdtrain run --set zero_stage=2"]),
        ({"zero_stage": 4}, ["zero_stage: expected 0 or 1 (found 4)"]),
        ({"bucket_cap": 1}, ["bucket_cap", "did you mean 'bucket_cap_mb'?"]),
    ],
)
def test_a_bad_argument_is_named_with_its_value(arguments: dict, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        settings(**arguments)
    for word in ["DistributedOptimizer", *words]:
        assert word in str(caught.value)


def test_numpy_numbers_are_numbers() -> None:
    assert settings(gradient_accumulation_steps=np.int64(3)).gradient_accumulation_steps == 3


def test_momentum_is_not_taken_twice() -> None:
    corrected = settings(compression={"type": "topk", "momentum": 0.9})
    corrected.check_momentum(0.0)
    settings().check_momentum(0.9)
    with pytest.raises(SpecError, match=r"0\.9.*taken twice"):
        corrected.check_momentum(0.9)


def reduced(average: str, ranks: list[list[int]], gradients: list[list[float]], **more: object) -> float:
    """What the sum over ranks gives when each obeys the scales; the longest window is a full one."""
    found = settings(average=average, gradient_accumulation_steps=max(map(len, ranks)), **more)
    total = float(sum(map(sum, ranks)))
    return sum(
        found.closing_scale(len(samples), float(sum(samples)), total)
        * sum(found.scale(len(ranks), n) * g for n, g in zip(samples, grads, strict=True))
        for samples, grads in zip(ranks, gradients, strict=True)
    )


@given(windows, st.integers(0, 2**32))
def test_the_scales_are_the_means_they_promise(ranks: list[list[int]], seed: int) -> None:
    draw = np.random.default_rng(seed)
    losses = [[draw.normal(size=n) for n in samples] for samples in ranks]
    means = [[float(each.mean()) for each in rank] for rank in losses]
    everything = np.concatenate([each for rank in losses for each in rank])
    expected = {
        "samples": everything.mean(),
        "mean": np.mean([np.mean(rank) for rank in means]),
        "ranks": np.sum([np.sum(rank) for rank in means]) / len(ranks),
        "sum": np.sum([np.sum(rank) for rank in means]),
    }
    for average, value in expected.items():
        assert reduced(average, ranks, means) == pytest.approx(value, rel=1e-12, abs=1e-12)


def test_adasum_is_given_each_ranks_own_mean() -> None:
    found = settings(compression="adasum", gradient_accumulation_steps=2)
    assert found.scale(ranks=4) == 0.5
    by_samples = settings(compression="adasum", average="samples")
    assert by_samples.scale(4, 3.0) * by_samples.closing_scale(1, own=3.0, total=100.0) == 1.0


def test_no_samples_anywhere_is_a_zero_gradient() -> None:
    assert settings(average="samples").closing_scale(1, 0.0, 0.0) == 0.0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(["mean", "samples"]))
def test_windows_of_one_update_are_put_together_as_one_mean(sizes: list[int], average: str) -> None:
    """Each window is the mean of its micro-batches; together they are the mean of all, in whatever cut."""
    found = settings(average=average, gradient_accumulation_steps=4)
    losses = np.random.default_rng(sum(sizes)).normal(size=sum(sizes))
    windows = np.split(losses, np.cumsum(sizes)[:-1])
    gradient, weight = 0.0, 0.0
    for window in windows:
        earlier, now = found.shares(weight, len(window))
        gradient = earlier * gradient + now * float(window.mean())
        weight += len(window)
    assert gradient == pytest.approx(float(losses.mean()), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {"average": "sum", "gradient_accumulation_steps": 4},
        {"average": "ranks", "gradient_accumulation_steps": 4},
        {"average": "mean"},
        {"average": "samples"},
    ],
)
def test_windows_add_up_where_no_mean_over_micro_batches_was_asked_for(arguments: dict) -> None:
    assert settings(**arguments).shares(3.0, 2.0) == (1.0, 1.0)


def test_a_window_without_samples_changes_nothing() -> None:
    found = settings(average="samples", gradient_accumulation_steps=4)
    assert found.shares(3.0, 0.0) == found.shares(0.0, 3.0) == (1.0, 1.0)
