"""Adasum in the simulator: what the paper says of it."""

from __future__ import annotations

import numpy as np
import pytest

from hvdtrain.core.compression import Adasum
from hvdtrain.core.compression.simulator import Simulator
from hvdtrain.core.errors import SpecError
from tests.conformance.cases import BUCKETS, bucket, gradients


def combine(given: np.ndarray, *shapes: tuple[int, ...]) -> np.ndarray:
    found = Simulator(Adasum(), bucket(0, *shapes), len(given), dtype=given.dtype.name).reduce(given, 1)
    assert {array.tobytes() for array in found} == {found[0].tobytes()}
    return found[0]


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
def test_equal_gradients_are_averaged_and_orthogonal_ones_added(ranks: int) -> None:
    equal = np.tile(gradients(1, 1, 32), (ranks, 1))
    np.testing.assert_allclose(combine(equal, (32,)), equal[0], rtol=1e-14)
    orthogonal = np.eye(16)[:ranks] * np.arange(1.0, ranks + 1)[:, None]
    np.testing.assert_allclose(combine(orthogonal, (16,)), orthogonal.sum(axis=0), rtol=1e-14)


def test_two_gradients_by_the_papers_formula() -> None:
    a, b = gradients(2, 2, 50)
    dot = np.dot(a, b)
    expected = (1 - dot / (2 * np.dot(a, a))) * a + (1 - dot / (2 * np.dot(b, b))) * b
    np.testing.assert_allclose(combine(np.array([a, b]), (5, 10)), expected, rtol=1e-13)


def test_four_gradients_in_pairs_of_pairs() -> None:
    given = gradients(3, 4, 20)
    halves = [combine(given[:2], (20,)), combine(given[2:], (20,))]
    np.testing.assert_allclose(combine(given, (20,)), combine(np.array(halves), (20,)), rtol=1e-14)


def test_every_weight_is_combined_by_itself() -> None:
    given = gradients(4, 4, 60)
    parts = [combine(given[:, :40], (40,)), combine(given[:, 40:], (4, 5))]
    np.testing.assert_array_equal(combine(given, (40,), (0, 3), (4, 5)), np.concatenate(parts))


def test_a_rank_without_data_changes_nothing() -> None:
    given = gradients(5, 2, 12)
    given[1] = 0.0
    np.testing.assert_array_equal(combine(given, (12,)), given[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    given = gradients(6, 4, BUCKETS["mixed"].size)
    given[3, 7] = value
    for found in Simulator(Adasum(), BUCKETS["mixed"], 4).reduce(given, 1):
        assert not np.isfinite(found).all()


def test_a_ranks_divisor_is_its_own_weight() -> None:
    assert Adasum().divisor(own=12.0, total=40.0) == 12.0
    assert Adasum().divisor(own=0.0, total=40.0) == 1.0


def test_what_cannot_be_combined_is_refused() -> None:
    for ranks in (1, 2, 4, 1024):
        Adasum().check(ranks)
    for ranks in (3, 6, 1023):
        with pytest.raises(SpecError, match=rf"adasum .* needs 1, 2, 4, 8, \.\.\. of them, found {ranks}"):
            Adasum().check(ranks)
    with pytest.raises(SpecError, match=r"adasum needs Horovod's MPI operations .*--wire mpi"):
        Adasum().check(2, mpi=False)
