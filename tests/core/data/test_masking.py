"""Masks: BERT's proportions, exact counts, and nothing but seed, epoch and sample behind them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data.masking import Masked, mask_tokens, mask_words, max_predictions
from hvdtrain.core.data.text import TokenIds

IDS = TokenIds(size=1000, pad=0, cls=2, sep=3, mask=4, special=(0, 1, 2, 3, 4))


def rows(lengths: list[int], width: int) -> np.ndarray:
    """Rows [CLS] 5 6 7 … [SEP] of the given lengths, padded."""
    out = np.zeros((len(lengths), width), dtype=np.int32)
    for row, length in zip(out, lengths, strict=True):
        row[:length] = [IDS.cls, *(5 + np.arange(length - 2) % 900), IDS.sep]
    return out


def masked(input_ids: np.ndarray, probability: float = 0.15, epoch: int = 0) -> Masked:
    words = mask_words(1, epoch, np.arange(len(input_ids)), input_ids.shape[1])
    return mask_tokens(input_ids, words, probability, IDS)


@given(
    lengths=st.lists(st.integers(3, 40), min_size=1, max_size=6),
    probability=st.floats(0.01, 0.99),
    epoch=st.integers(-1, 3),
)
def test_every_row_gets_its_exact_number_of_predictions(
    lengths: list[int], probability: float, epoch: int
) -> None:
    before = rows(lengths, 40)
    after = masked(before, probability, epoch)
    assert after.positions.shape == (len(lengths), max_predictions(probability, 40))
    for row, length in enumerate(lengths):
        valid = after.valid[row]
        positions = after.positions[row][valid]
        assert len(positions) == max(1, round(probability * (length - 2)))
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert positions.min() >= 1
        assert positions.max() <= length - 2
        np.testing.assert_array_equal(after.labels[row][valid], before[row, positions])
        untouched = np.setdiff1d(np.arange(40), positions)
        np.testing.assert_array_equal(after.input_ids[row, untouched], before[row, untouched])
        assert not valid[len(positions) :].any()
        assert not after.positions[row][~valid].any()
        assert not after.labels[row][~valid].any()


def test_proportions_are_those_of_the_paper() -> None:
    before = rows([128] * 2000, 128)
    after = masked(before)
    seen = np.take_along_axis(after.input_ids, after.positions.astype(np.int64), axis=1)[after.valid]
    labels = after.labels[after.valid]
    assert len(labels) == 2000 * round(0.15 * 126)
    hidden, kept = seen == IDS.mask, seen == labels
    # Six standard deviations of a binomial over 38,000 draws.
    assert hidden.mean() == pytest.approx(0.8, abs=0.013)
    assert kept.mean() == pytest.approx(0.1, abs=0.010)
    random = seen[~hidden & ~kept]
    assert len(random) / len(seen) == pytest.approx(0.1, abs=0.010)
    assert random.min() < 50
    assert random.max() > 950


def test_every_position_is_equally_likely() -> None:
    after = masked(rows([22] * 4000, 22), probability=0.5)
    counts = np.bincount(after.positions[after.valid], minlength=22)[1:21]
    assert counts == pytest.approx(np.full(20, 2000), abs=6 * np.sqrt(4000 * 0.25))


def test_masks_do_not_depend_on_the_batch_around_a_sample() -> None:
    together = mask_words(9, 2, np.array([5, 17, 3]), 30)
    alone = mask_words(9, 2, np.array([17]), 30)
    wider = mask_words(9, 2, np.array([17]), 64)
    np.testing.assert_array_equal(together[1], alone[0])
    np.testing.assert_array_equal(wider[0, :30], alone[0])


def test_epochs_samples_and_seeds_have_their_own_masks() -> None:
    words = [
        mask_words(s, e, np.array([i]), 8).tobytes() for s in range(2) for e in (-1, 0, 1) for i in range(3)
    ]
    assert len(set(words)) == len(words)


def test_row_without_ordinary_tokens_has_no_prediction() -> None:
    only_special = np.array([[2, 1, 1, 3, 0, 0, 0, 0]], dtype=np.int32)
    after = masked(only_special)
    np.testing.assert_array_equal(after.input_ids, only_special)
    assert not after.valid.any()
