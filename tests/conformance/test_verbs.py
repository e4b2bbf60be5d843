"""The array verbs that are not one call of a library: each framework's against NumPy's and a plain oracle."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdtrain.core.compression import noise, numpy_ops, stacked_ops
from hvdtrain.core.compression.selection import largest
from tests.jobs.runs import FRAMEWORKS

Verbs = tuple[Any, Callable[[np.ndarray], Any], Callable[[Any], np.ndarray]]


@pytest.fixture(params=["numpy", "stacked", *FRAMEWORKS])
def verbs(request: pytest.FixtureRequest) -> Verbs:
    """An implementation, and the ways into it and back."""
    if request.param == "numpy":
        return numpy_ops.Ops(2, 1, 0), np.copy, np.asarray
    if request.param == "stacked":
        stack = stacked_ops.Stacked
        return stacked_ops.StackedOps(2, 0), lambda a: stack(a[None].copy()), lambda a: a.rows[0]
    ops = importlib.import_module(f"hvdtrain.{request.param}.ops").Ops(2, 1, 0)
    if request.param == "torch":
        torch = importlib.import_module("torch")
        return ops, lambda a: torch.from_numpy(a.copy()), lambda a: a.numpy()
    return ops, importlib.import_module("tensorflow").constant, lambda a: a.numpy()


@pytest.mark.parametrize("codec", ["narrow", "widen", "shorten", "lengthen", "quantise", "dequantise"])
def test_the_engine_brings_the_codecs_without_which_verbs_are_slow(codec: str) -> None:
    torch = importlib.import_module("horovod.torch.mpi_lib_v2")
    tensorflow = importlib.import_module("horovod.tensorflow.mpi_ops").MPI_LIB
    assert callable(getattr(torch, f"horovod_torch_{codec}"))
    assert callable(getattr(tensorflow, f"horovod_{codec}"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("odd", [0.0, 3e4, -7e4, np.inf, -np.inf, np.nan])
def test_narrow_clips_what_is_finite_and_counts_it(verbs: Verbs, dtype: str, odd: float) -> None:
    ops, there, back = verbs
    flat = np.array([0.1, -2.0, 3.0, odd, 4.0], dtype) / 4.0
    scale = np.array(4.0, dtype)
    halves, over = ops.narrow(there(flat), there(scale), 16384.0)
    kept = np.clip(odd, -16384.0, 16384.0) if np.isfinite(odd) else odd
    expected = np.array([0.1, -2.0, 3.0, kept, 4.0]).astype(np.float16)
    assert back(halves).dtype == np.float16
    np.testing.assert_array_equal(back(halves), expected)
    if np.isfinite(odd):
        assert int(back(over)) == (abs(odd) > 16384.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("odd", [0.0, 9.0, -65504.0, np.inf, np.nan])
def test_widen_undoes_the_scale_and_finds_the_largest(verbs: Verbs, dtype: str, odd: float) -> None:
    ops, there, back = verbs
    halves = np.array([1.0, -2.5, 3.25, odd], np.float16)
    wide, top = ops.widen(there(halves), there(np.array(8.0, dtype)), there(np.zeros(4, dtype)))
    assert back(wide).dtype == dtype
    np.testing.assert_array_equal(back(wide), halves.astype(dtype) / 8.0)
    assert back(top).dtype == np.float32
    np.testing.assert_array_equal(back(top), np.abs(halves.astype(np.float32)).max() / 8.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("odd", [0.0, 1e-40, 3e38, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("size", [1, 7, 16, 1001, (1 << 20) + 19])
def test_what_shorten_sends_and_keeps_is_the_sum(verbs: Verbs, dtype: str, odd: float, size: int) -> None:
    ops, there, back = verbs
    flat, residual = np.random.default_rng(size).normal(size=(2, size)).astype(dtype)
    flat[size // 2] = odd
    sent, lost = ops.shorten(there(flat), there(residual))
    assert ops.dtype(sent) == "bfloat16"
    wide, whole = back(ops.cast(sent, dtype)), flat + residual
    with np.errstate(all="ignore"):
        expected = whole.astype("bfloat16").astype(dtype)
        np.testing.assert_array_equal(wide, expected)
        np.testing.assert_array_equal(back(lost), whole - expected)


# The longest is written past the cache.
@pytest.mark.parametrize("size", [1, 8, 1003, (1 << 20) + 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lengthen_is_exact_wherever_a_vector_begins(verbs: Verbs, dtype: str, size: int) -> None:
    ops, there, back = verbs
    flat = np.random.default_rng(size).normal(size=size + 1).astype(dtype)
    flat[size // 2] = np.nan
    sums = ops.cast(there(flat), "bfloat16")[..., 1:]
    found = back(ops.lengthen(sums, there(flat)[..., 1:]))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, flat.astype("bfloat16").astype(dtype)[1:])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("odd", [0.0, 1e-43, 3e38, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("length", [1, 7, 32, 33, 256, 1001])
def test_what_quantise_says_and_keeps_is_the_numbers(
    verbs: Verbs, dtype: str, odd: float, length: int
) -> None:
    ops, there, back = verbs
    draws = np.random.default_rng(length)
    numbers, noise = draws.normal(size=(5, length)).astype(dtype), draws.random((5, length), np.float32)
    numbers[1], numbers[3, length // 2] = 0.0, odd
    steps, multiples, lost = (back(a) for a in ops.quantise(there(numbers), there(noise)))
    assert (steps.dtype, multiples.dtype, lost.dtype) == (np.float32, np.int8, dtype)
    whole = np.isfinite(numbers).all(axis=1)
    np.testing.assert_array_equal(np.isfinite(steps), whole)
    numbers, noise, steps, lost = numbers[whole], noise[whole], steps[whole], lost[whole]
    # TensorFlow takes numbers below float32's normal ones for 0.
    tiny = float(np.finfo(np.float32).tiny)
    np.testing.assert_allclose(steps, np.abs(numbers).max(1) / 127, rtol=1e-6, atol=tiny)
    # By hand: the multiple below x / step + noise.
    wide = np.where(steps > 0.0, steps, np.float32(1.0)).astype(dtype)
    expected = np.floor(numbers / wide[:, None] + noise.astype(dtype))
    np.testing.assert_array_equal(multiples[whole], np.clip(expected, -127, 127))
    said = back(ops.dequantise(there(steps), there(multiples[whole]), dtype))
    np.testing.assert_array_equal(said, multiples[whole].astype(dtype) * steps.astype(dtype)[:, None])
    np.testing.assert_allclose(lost, numbers - said, rtol=0.0, atol=tiny)


@pytest.mark.parametrize("size", [1, 8, 1003, (1 << 20) + 3])
def test_long_and_odd_vectors_are_narrowed_to_the_end(verbs: Verbs, size: int) -> None:
    ops, there, back = verbs
    flat = np.random.default_rng(size).normal(size=size).astype(np.float32)
    flat[-1] = 5.0
    halves, over = ops.narrow(there(flat), there(np.array(2.0, np.float32)), 8.0)
    np.testing.assert_array_equal(back(halves), np.clip(2.0 * flat, -8.0, 8.0).astype(np.float16))
    assert int(back(over)) == np.sum(np.abs(flat) > 4.0) > 0
    wide, top = ops.widen(halves, there(np.array(2.0, np.float32)), there(np.zeros(size, np.float32)))
    np.testing.assert_array_equal(back(wide), back(halves).astype(np.float32) / 2.0)
    assert back(top) == np.abs(back(wide)).max()


@pytest.mark.parametrize("odd", [0.0, np.inf, -np.inf, np.nan])
def test_magnitude_is_of_each_row_and_not_finite_where_an_element_is_not(verbs: Verbs, odd: float) -> None:
    ops, there, back = verbs
    found = back(ops.magnitude(there(np.array([[1.0, -3.0, 2.0], [0.5, odd, -0.25]]))))
    assert found[0] == 3.0
    assert found[1] == 0.5 if odd == 0.0 else not np.isfinite(found[1])


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 1000])
def test_bits_come_back_as_signs(verbs: Verbs, count: int) -> None:
    ops, there, back = verbs
    array = np.random.default_rng(count).normal(size=count)
    array[::5] = 0.0
    bits = array >= 0.0
    packed = ops.pack_signs(there(array))
    np.testing.assert_array_equal(back(packed), np.packbits(bits))
    found = back(ops.unpack_signs(packed, count, "float32"))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.where(bits, 1.0, -1.0))


def test_a_row_is_added_and_a_product_taken_away(verbs: Verbs) -> None:
    ops, there, back = verbs
    matrix, left, right = np.arange(6.0).reshape(2, 3), np.array([[1.0], [2.0]]), np.array([[1.0, 0.0, 3.0]])
    row = stacked_ops.Stacked(np.array([1])) if isinstance(ops, stacked_ops.StackedOps) else 1
    found = back(ops.add_row(there(matrix), row, there(right[0])))
    np.testing.assert_array_equal(found, matrix + np.array([[0.0], [1.0]]) * right)
    found = back(ops.minus_product(there(matrix), there(left), there(right)))
    np.testing.assert_array_equal(found, matrix - left @ right)


def test_matmul_takes_a_right_factor_as_it_is_or_transposed(verbs: Verbs) -> None:
    ops, there, back = verbs
    left, right = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(back(ops.matmul(there(left), there(right))), left @ right)
    found = ops.matmul(there(left), there(right.T), transpose_right=True)
    np.testing.assert_array_equal(back(found), left @ right)


@pytest.mark.parametrize("size", [5, 100, 30_000])
def test_top_k_are_the_largest(verbs: Verbs, size: int) -> None:
    ops, there, back = verbs
    values = np.random.default_rng(size).normal(size=size)
    for k in {1, max(1, size // 100), size // 2, size}:
        found = back(ops.top_k(there(values), k))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, np.sort(np.argsort(values)[-k:]))


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, np.inf]), min_size=1, max_size=9),
    repeats=st.integers(1, 2000),
    k=st.integers(1, 18_000),
)
def test_the_largest_with_many_equal(values: list[float], repeats: int, k: int) -> None:
    every = np.tile(values, repeats)
    k = min(k, every.size)
    found = largest(every, k)
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(np.sort(every[found]), np.sort(every)[-k:])


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 3000), share=st.floats(0.0, 1.0), seed=st.integers(0, 9))
def test_a_subset_has_k_different_positions(size: int, share: float, seed: int) -> None:
    k = int(share * size)
    found = noise.subset(size, k, seed, "test", 1)
    assert found.dtype == np.int32
    assert found.shape == (k,)
    assert (np.diff(found) > 0).all()
    assert not k or (found[0] >= 0 and found[-1] < size)


@pytest.mark.parametrize("k", [5, 40])
def test_every_position_of_a_subset_has_an_equal_chance(k: int) -> None:
    count = sum(np.bincount(noise.subset(100, k, 0, "test", i), minlength=100) for i in range(3000))
    # Five standard deviations of a binomial.
    assert np.abs(count - 30 * k).max() < 5 * np.sqrt(30 * k * (1 - k / 100))


def test_subsets_drawn_together_are_those_drawn_one_by_one() -> None:
    together = noise.Subsets(3)
    # An update may be left out, be asked again, and ask for more or less.
    for update, places in ((1, 2), (2, 2), (2, 2), (5, 3), (6, 1)):
        for place in range(places):
            found = together.draw(100, 7, "test", update, place)
            np.testing.assert_array_equal(found, noise.subset(100, 7, 3, "test", update, place))


def test_subsets_may_be_asked_for_by_several_threads_at_once() -> None:
    together = noise.Subsets(3)
    with ThreadPoolExecutor(8) as pool:
        for update in range(1, 9):
            draws = pool.map(
                lambda place, update=update: together.draw(9999, 700, "test", update, place), range(16)
            )
            for place, found in enumerate(draws):
                np.testing.assert_array_equal(found, noise.subset(9999, 700, 3, "test", update, place))


def test_the_first_subset_of_an_update_draws_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    together = noise.Subsets(3)
    for update in (1, 2):
        together.draw(100, 7, "test", update, 0)
    expected = noise.subset(100, 7, 3, "test", 3, 1)
    together.draw(100, 7, "test", 2, 1)
    together.draw(100, 7, "test", 3, 0)
    monkeypatch.delattr(noise, "subset")
    np.testing.assert_array_equal(together.draw(100, 7, "test", 3, 1), expected)


@pytest.mark.parametrize("shape", [(5,), (5, 3)])
def test_spread_leaves_nothing_of_what_was_there(verbs: Verbs, shape: tuple[int, ...]) -> None:
    ops, there, back = verbs
    values = np.arange(1.0, 1.0 + np.prod((2, *shape[1:]))).reshape(2, *shape[1:])
    places, before = np.array([1, 4], np.int32), np.full(shape, np.nan)
    found = back(ops.spread(there(places), there(values), into=there(before)))
    expected = np.zeros(shape)
    expected[places] = values
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, expected)


def test_uniform_numbers_are_inside_the_unit_interval_and_centred() -> None:
    found = noise.uniform(100_001, 0, "test", 1)
    assert found.dtype == np.float32
    assert found.shape == (100_001,)
    assert 0.0 < found.min() < 0.001
    assert 0.999 < found.max() < 1.0
    assert abs(found.mean() - 0.5) < 5 * np.sqrt(1 / 12 / found.size)
