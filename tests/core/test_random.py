"""The counter-based generator: pinned for ever, and distinct for distinct purposes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.random import framework_seed, generator, random_words, unit_floats


def test_words_are_the_ones_of_the_first_release() -> None:
    words = [hex(word) for word in random_words(4, 7, "order", 3)]
    assert words == ["0x595dab0d1170961a", "0x6b70e5cf2c6f71ef", "0xff63b74d59aa40d", "0x2c00ec6238b8f3ff"]


def test_numpy_still_makes_the_same_initial_weights() -> None:
    drawn = generator(7, "weights", 1).normal(size=3)
    np.testing.assert_array_equal(drawn, [-1.1396886757458404, -0.9037576866200355, 2.2010974416361293])


def test_unit_floats_are_numpys_uniform_numbers() -> None:
    mine = unit_floats(random_words(1000, 7, "weights", 1))
    np.testing.assert_array_equal(mine, generator(7, "weights", 1).random(1000))


places = st.tuples(
    st.integers(0, 2**63 - 1), st.text(max_size=5), st.lists(st.integers(-2, 2**40), max_size=3)
)


@given(places, places)
def test_only_equal_places_share_numbers(
    one: tuple[int, str, list[int]], other: tuple[int, str, list[int]]
) -> None:
    drawn = [random_words(2, seed, purpose, *indices).tolist() for seed, purpose, indices in (one, other)]
    assert (drawn[0] == drawn[1]) == (one == other)


def test_joined_names_are_not_confused() -> None:
    assert random_words(1, 1, "a", 1, 2) != random_words(1, 1, "a", 12)
    assert random_words(1, 1, "a1", 2) != random_words(1, 1, "a", 12)


def test_numpy_integers_mean_the_same() -> None:
    assert random_words(1, 5, "a", np.int64(3)) == random_words(1, 5, "a", 3)


SEEDS = st.one_of(st.integers(0, 2**63 - 1), st.sampled_from([0, 2**32 - 1, 2**32, 2**62, 2**63 - 1]))
RANKS = st.integers(0, 100_000)


@given(SEEDS, RANKS, RANKS)
def test_every_legal_seed_gives_every_rank_one_of_its_own_that_frameworks_take(
    seed: int, one: int, other: int
) -> None:
    drawn = [framework_seed(seed, rank) for rank in (one, other)]
    # keras.utils.set_random_seed and numpy.random.seed take no more.
    assert all(0 <= each < 2**32 for each in drawn)
    assert (drawn[0] == drawn[1]) == (one == other)


def test_what_goes_on_without_its_generators_has_seeds_of_its_own() -> None:
    drawn = [framework_seed(7, rank, step) for step in range(100) for rank in range(8)]
    assert len(set(drawn)) == len(drawn)
    assert drawn[:8] == [framework_seed(7, rank) for rank in range(8)]


def test_ranks_of_neighbouring_seeds_do_not_share_one() -> None:
    drawn = [framework_seed(seed, rank) for seed in range(100) for rank in range(8)]
    assert len(set(drawn)) == len(drawn)
