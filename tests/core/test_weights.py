"""Initial weights, drawn once by name, whatever else the model has; and how Keras holds a weight."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hvdtrain.core.families.initializers import (
    ONES,
    ZEROS,
    Initializer,
    KaimingNormal,
    Normal,
    TruncatedNormal,
)
from hvdtrain.core.families.weights import Layout, Weight, initial_weights

NORMAL = Weight("layer.kernel", (64, 32), True, Normal(0.02))
OTHER = Weight("layer.other", (64, 32), True, Normal(0.02))
CONSTANT = Weight("norm.weight", (8,), False, ONES)
ZERO = Weight("bias", (8,), False, ZEROS)


def draw(*weights: Weight, seed: int = 0, dtype: str = "float64") -> dict[str, np.ndarray]:
    return initial_weights(weights, seed, dtype)


def test_each_kind_of_weight_starts_as_it_says() -> None:
    found = draw(NORMAL, CONSTANT, ZERO)
    assert {name: array.shape for name, array in found.items()} == {
        weight.name: weight.shape for weight in (NORMAL, CONSTANT, ZERO)
    }
    assert (found[CONSTANT.name] == 1).all()
    assert (found[ZERO.name] == 0).all()


@pytest.mark.parametrize(
    ("initial", "expected"),
    [
        (Normal(0.02), stats.norm(0.0, 0.02)),
        (TruncatedNormal(0.02), stats.truncnorm(-2.0, 2.0, 0.0, 0.02)),
        (KaimingNormal(), stats.norm(0.0, math.sqrt(2 / (16 * 3 * 3)))),
        (KaimingNormal("fan_out"), stats.norm(0.0, math.sqrt(2 / (64 * 3 * 3)))),
    ],
)
def test_a_draw_has_its_distribution(initial: Initializer, expected: stats.rv_continuous) -> None:
    found = draw(Weight("convolution", (64, 16, 3, 3), True, initial))["convolution"]
    assert stats.kstest(found.ravel(), expected.cdf).pvalue > 0.001


def test_a_weight_depends_on_the_seed_and_its_name_alone() -> None:
    alone, among_others = draw(NORMAL), draw(ZERO, OTHER, NORMAL)
    np.testing.assert_array_equal(alone[NORMAL.name], among_others[NORMAL.name])
    assert not np.array_equal(among_others[NORMAL.name], among_others[OTHER.name])
    assert not np.array_equal(alone[NORMAL.name], draw(NORMAL, seed=1)[NORMAL.name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_dtype_is_the_same_draw_rounded_once(dtype: str) -> None:
    found = draw(NORMAL, dtype=dtype)[NORMAL.name]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, draw(NORMAL)[NORMAL.name].astype(dtype))


@given(st.data())
def test_join_undoes_split(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    axes = data.draw(st.sampled_from([None, *itertools.permutations(range(len(sizes)))]))
    parts = data.draw(st.integers(1, 3))
    layout = Layout(axes, parts)
    last = axes[-1] if axes else -1
    sizes[last] *= parts
    array = np.arange(math.prod(sizes), dtype=np.float64).reshape(sizes)
    variables = layout.split(array)
    # By hand: variable p holds the p-th stretch of the axis that is Keras' last.
    for number, variable in enumerate(variables):
        stretch = np.split(array, parts, axis=last)[number]
        np.testing.assert_array_equal(variable, stretch if axes is None else np.transpose(stretch, axes))
    flat = [variable.reshape(-1, 1) for variable in variables]
    np.testing.assert_array_equal(layout.join(flat, array.shape), array)


def test_a_fused_projection_is_three_kernels_with_heads() -> None:
    hidden, heads = 6, 2
    fused = np.arange(hidden * 3 * hidden).reshape(hidden, 3 * hidden)
    query, key, value = Layout(parts=3).split(fused)
    np.testing.assert_array_equal(key, fused[:, hidden : 2 * hidden])
    kernels = [k.reshape(hidden, heads, hidden // heads) for k in (query, key, value)]
    np.testing.assert_array_equal(Layout(parts=3).join(kernels, fused.shape), fused)
