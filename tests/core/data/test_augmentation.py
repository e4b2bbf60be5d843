"""Augmentation against a slow reference that is written another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from hvdtrain.core.data.augmentation import Augmentation
from hvdtrain.core.random import generator

seeds = st.integers(0, 2**63 - 1)


def words_of(count: int, seed: int, purpose: str, epoch: int, sample: int) -> list[int]:
    """Drawn from NumPy's generator of this place, as Python's integers."""
    return generator(seed, purpose, epoch, sample).bit_generator.random_raw(count).tolist()  # type: ignore[attr-defined]


def reference(image: np.ndarray, padding: int, flip: bool, words: list[int]) -> np.ndarray:
    """Pixel by pixel: what lies outside of the image is 0."""
    height, width, channels = image.shape
    down, right = words[0] % (2 * padding + 1) - padding, words[1] % (2 * padding + 1) - padding
    mirrored = flip and words[2] >= 2**63
    found = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            source_y, source_x = y + down, (width - 1 - x if mirrored else x) + right
            if 0 <= source_y < height and 0 <= source_x < width:
                for c in range(channels):
                    found[y, x, c] = image[source_y, source_x, c]
    return found


def image_of(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(seed % 2**32).integers(1, 256, shape, dtype=np.uint8)


@given(seeds, st.integers(0, 50), st.integers(0, 10**6), st.integers(0, 5), st.booleans(), st.data())
def test_crop_and_flip_are_those_of_the_reference(
    seed: int, epoch: int, sample: int, padding: int, flip: bool, data: Any
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from((1, 3))))
    image = image_of(seed, shape)
    found = Augmentation(padding, flip, 0.0, seed).changed(image, epoch, sample)
    assert found.dtype == np.uint8
    expected = reference(image, padding, flip, words_of(3, seed, "augment", epoch, sample))
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=50)
@given(seeds, st.integers(0, 50), st.integers(1, 40), st.sampled_from((0.1, 0.2, 1.0, 4.0)))
def test_mixup_is_that_of_the_reference(seed: int, epoch: int, count: int, alpha: float) -> None:
    images = [image_of(seed + number, (3, 4, 1)) for number in range(count)]
    sample = seed % count
    pixels, other, share = Augmentation(0, False, alpha, seed).mixed(
        lambda number: images[number], count, epoch, sample
    )
    words = words_of(2, seed, "mixup", epoch, sample)
    assert other == words[0] % count
    assert 0.0 <= share <= 1.0
    for place in np.ndindex(pixels.shape):
        exact = share * int(images[sample][place]) + (1 - share) * int(images[other][place])
        assert int(pixels[place]) == round(exact)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_of_mixup_have_the_beta_distribution(alpha: float) -> None:
    augmentation, image = Augmentation(alpha=alpha, seed=1), np.zeros((1, 1, 1), np.uint8)
    drawn = [augmentation.mixed(lambda _: image, 500, 0, sample) for sample in range(500)]
    shares = [share for _, _, share in drawn]
    assert kstest(shares, "beta", args=(alpha, alpha)).pvalue > 1e-3
    assert len({other for _, other, _ in drawn}) > 250


def test_each_place_and_both_sides_are_taken() -> None:
    image = np.arange(1, 10, dtype=np.uint8).reshape(3, 3, 1)
    found = {Augmentation(1, True, 0.0, 0).changed(image, 0, sample).tobytes() for sample in range(400)}
    assert len(found) == 9 * 2


def test_it_depends_on_seed_epoch_and_sample_alone() -> None:
    image = image_of(0, (8, 8, 1))

    def taken(seed: int, epoch: int, sample: int) -> bytes:
        return Augmentation(3, True, 0.0, seed).changed(image, epoch, sample).tobytes()

    assert taken(1, 2, 3) == taken(1, 2, 3)
    assert len({taken(1, 2, 3), taken(2, 2, 3), taken(1, 3, 3), taken(1, 2, 4)}) == 4


def test_nothing_is_changed_unless_asked() -> None:
    image = image_of(0, (8, 8, 3))
    assert Augmentation().changed(image, 0, 0) is image
