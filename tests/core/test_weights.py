"""Initial weights: drawn once by name, whatever else the model has."""

from __future__ import annotations

import numpy as np
import pytest

from hvdtrain.core.weights import Weight, initial_weights

NORMAL = Weight("layer.kernel", (64, 32), True, "normal")
OTHER = Weight("layer.other", (64, 32), True, "normal")
ONES = Weight("norm.weight", (8,), False, "ones")
ZEROS = Weight("bias", (8,), False, "zeros")


def draw(*weights: Weight, seed: int = 0, std: float = 0.02, dtype: str = "float64") -> dict[str, np.ndarray]:
    return initial_weights(weights, seed, std, dtype)


def test_each_kind_of_weight_starts_as_it_says() -> None:
    found = draw(NORMAL, ONES, ZEROS)
    assert {name: array.shape for name, array in found.items()} == {
        weight.name: weight.shape for weight in (NORMAL, ONES, ZEROS)
    }
    assert (found[ONES.name] == 1).all()
    assert (found[ZEROS.name] == 0).all()
    # Four standard errors of 2048 draws.
    assert abs(found[NORMAL.name].mean()) < 4 * 0.02 / 2048**0.5
    assert abs(found[NORMAL.name].std() - 0.02) < 4 * 0.02 / 4096**0.5


def test_a_weight_depends_on_the_seed_and_its_name_alone() -> None:
    alone, among_others = draw(NORMAL), draw(ZEROS, OTHER, NORMAL)
    np.testing.assert_array_equal(alone[NORMAL.name], among_others[NORMAL.name])
    assert not np.array_equal(among_others[NORMAL.name], among_others[OTHER.name])
    assert not np.array_equal(alone[NORMAL.name], draw(NORMAL, seed=1)[NORMAL.name])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_dtype_is_the_same_draw_rounded_once(dtype: str) -> None:
    found = draw(NORMAL, dtype=dtype)[NORMAL.name]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, draw(NORMAL)[NORMAL.name].astype(dtype))


def test_the_standard_deviation_scales_the_draw() -> None:
    np.testing.assert_allclose(
        draw(NORMAL, std=0.5)[NORMAL.name], draw(NORMAL, std=0.02)[NORMAL.name] * 25, rtol=1e-14
    )
