"""The loop and the sampling of `hvdtrain generate`, on models that are plain functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.generation import Sampling, continue_tokens

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3]))


def counting(ids: NDArray[np.int32]) -> NDArray[np.float64]:
    """Ten tokens, each of which is followed by the next."""
    return np.eye(10)[(ids[:, -1] + 1) % 10]


def shares(sampling: Sampling, draws: int = 4000) -> NDArray[np.float64]:
    return np.bincount([sampling.choose(LOGITS, step) for step in range(draws)], minlength=4) / draws


def test_greedy_is_the_most_likely_token_the_first_of_equals() -> None:
    assert Sampling().choose(LOGITS, 0) == 1
    assert Sampling().choose(np.array([0.0, 2.0, 2.0]), 7) == 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "expected"),
    [
        (1.0, None, [0.1, 0.4, 0.2, 0.3]),
        (0.5, None, [0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3]),
        (1.0, 2, [0.0, 4 / 7, 0.0, 3 / 7]),
        (1.0, 99, [0.1, 0.4, 0.2, 0.3]),
        (1e-310, None, [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_softmax_says(
    temperature: float, top_k: int | None, expected: list[float]
) -> None:
    found = shares(Sampling(temperature, top_k, seed=3))
    # Four standard deviations of 4000 draws.
    np.testing.assert_allclose(found, expected, atol=0.032)
    assert (found[np.array(expected) == 0.0] == 0.0).all()


def test_top_k_keeps_those_as_likely_as_the_last() -> None:
    found = {Sampling(1.0, 2, 0).choose(np.array([1.0, 0.0, 1.0, 2.0]), step) for step in range(200)}
    assert found == {0, 2, 3}


@given(st.integers(), st.integers(0, 50), st.floats(0.1, 10.0))
def test_the_same_seed_and_logits_give_the_same_token_whatever_is_added_to_the_logits(
    seed: int, step: int, temperature: float
) -> None:
    sampling = Sampling(temperature, 3, seed)
    first = sampling.choose(LOGITS, step)
    assert sampling.choose(LOGITS, step) == first
    assert sampling.choose(LOGITS + 64.0, step) == first


def test_other_seeds_and_steps_draw_otherwise() -> None:
    runs = {tuple(Sampling(1.0, None, seed).choose(LOGITS, s) for s in range(20)) for seed in range(20)}
    assert len(runs) == 20
    assert all(len(set(run)) > 1 for run in runs)


def test_it_stops_at_the_end_of_the_text_or_after_so_many_tokens() -> None:
    assert list(continue_tokens(counting, [3], 8, Sampling(), 20)) == [4, 5, 6, 7]
    assert list(continue_tokens(counting, [3], 8, Sampling(), 2)) == [4, 5]
    assert list(continue_tokens(counting, [7], 8, Sampling(), 20)) == []


def test_the_model_is_given_the_last_tokens_that_it_can_see() -> None:
    seen: list[list[int]] = []

    def watched(ids: NDArray[np.int32]) -> NDArray[np.float64]:
        seen.append(ids[0].tolist())
        return counting(ids)

    assert list(continue_tokens(watched, [1, 2, 3, 4], 0, Sampling(), 3, most=3)) == [5, 6, 7]
    assert seen == [[2, 3, 4], [3, 4, 5], [4, 5, 6]]


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(spoilt: float) -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        list(continue_tokens(lambda ids: np.array([[0.0, spoilt]]), [0], 0, Sampling(), 1))
