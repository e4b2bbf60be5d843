"""What batch norm means, with NumPy as the framework."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.families.batch_norm import (
    EPSILON,
    MOMENTUM,
    Moments,
    inverse_deviation,
    is_recomputed,
    merge,
    moved,
    recomputing,
)


class InNumPy:
    def total(self, array: np.ndarray) -> np.ndarray:
        return array.sum(0)

    def where(self, condition: Any, array: Any, other: Any) -> np.ndarray:
        return np.where(condition, array, other)

    def isfinite(self, array: np.ndarray) -> np.ndarray:
        return np.isfinite(array)


NUMPY, CHANNELS = InNumPy(), 3


def moments(parts: list[np.ndarray]) -> Moments:
    """Of some parts, each (values, channels)."""
    means = [part.sum(0) / max(len(part), 1) for part in parts]
    spreads = [((part - mean) ** 2).sum(0) for part, mean in zip(parts, means, strict=True)]
    return Moments(np.array([[float(len(part))] for part in parts]), np.stack(means), np.stack(spreads))


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.floats(-1e6, 1e6),
    st.integers(0, 2**32 - 1),
)
def test_parts_together_have_the_moments_of_all_values(sizes: list[int], shift: float, seed: int) -> None:
    parts = [np.random.default_rng([seed, i]).normal(shift, 2.0, (n, CHANNELS)) for i, n in enumerate(sizes)]
    found, values = merge(NUMPY, moments(parts)), np.concatenate(parts)
    assert found.count.tolist() == [len(values)]
    if len(values):
        np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12, atol=1e-12)
        spread = values.var(0) * len(values)
        np.testing.assert_allclose(found.spread, spread, rtol=1e-6, atol=1e-6)
        expected = 1 / np.sqrt(spread / len(values) + EPSILON)
        np.testing.assert_allclose(inverse_deviation(NUMPY, found), expected, rtol=1e-5)


@given(st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_the_running_variance_is_unbiased_where_there_is_one(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values, mean, variance = random.normal(size=(count, CHANNELS)), *random.uniform(1, 2, (2, CHANNELS))
    found = moved(NUMPY, mean, variance, merge(NUMPY, moments([values])))
    expected = (mean, variance)
    if count > 1:
        new = values.mean(0), values.var(0, ddof=1)
        expected = tuple((1 - MOMENTUM) * a + MOMENTUM * b for a, b in zip(expected, new, strict=True))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_repeated_pass_is_known_as_one_until_it_ends() -> None:
    with recomputing():
        with recomputing():
            assert is_recomputed()
        assert is_recomputed()
    assert not is_recomputed()
