"""Masked-LM masks (Devlin et al. 2018, arXiv:1810.04805) that depend only on seed, epoch and sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.random import random_words, unit_floats

_MASKED, _MASKED_OR_RANDOM = 0.8, 0.9


@dataclass(frozen=True, eq=False)
class Masked:
    """A batch with its predictions: b rows of S tokens, M predictions at most.

    Attributes:
        input_ids: the tokens the model sees, int32 (b, S).
        positions: where it predicts, ascending, then zeros: int32 (b, M).
        labels: what stood there, then zeros: int32 (b, M).
        valid: which of the M are predictions: bool (b, M).
    """

    input_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    labels: NDArray[np.int32]
    valid: NDArray[np.bool_]


def max_predictions(mlm_probability: float, max_seq_length: int) -> int:
    """The most predictions a sequence can have: M."""
    return max(1, round(mlm_probability * (max_seq_length - 2)))


def mask_words(seed: int, epoch: int, samples: NDArray[np.int64], max_seq_length: int) -> NDArray[np.uint64]:
    """The random words behind the masks: uint64 (len(samples), max_seq_length, 3).

    The words of a position do not depend on `max_seq_length` or on the other samples of the batch.

    Args:
        seed: the job's seed.
        epoch: from 0, or `EVALUATION_EPOCH`, so that every evaluation asks the same questions.
        samples: which samples, int64 (b,).
        max_seq_length: S.
    """
    rows = [random_words(3 * max_seq_length, seed, "mask", epoch, int(sample)) for sample in samples]
    return np.array(rows, dtype=np.uint64).reshape(len(rows), max_seq_length, 3)


def mask_tokens(
    input_ids: NDArray[np.int32], words: NDArray[np.uint64], mlm_probability: float, ids: TokenIds
) -> Masked:
    """Choose what to predict and hide it.

    Of each row's n tokens that are not special, round(mlm_probability * n) are chosen, at least 1 when n is
    not 0 (half rounds to even). A chosen token becomes [MASK] in 80% of cases, a token drawn from the whole
    vocabulary in 10%, and stays in 10%.

    Args:
        input_ids: rows padded with [PAD], int32 (b, S).
        words: from `mask_words`, uint64 (b, S, 3).
        mlm_probability: between 0 and 1.
        ids: of the tokenizer.

    Returns:
        The batch with M = `max_predictions(mlm_probability, S)` places a row.
    """
    is_special = np.zeros(ids.size, dtype=bool)
    is_special[list(ids.special)] = True
    maskable = ~is_special[input_ids]
    available = maskable.sum(axis=1)
    chosen = np.where(available > 0, np.maximum(1, np.rint(mlm_probability * available)), 0)
    # A token that may not be chosen sorts behind all that may.
    scores = np.where(maskable, words[:, :, 0] >> np.uint64(1), np.uint64(2**64 - 1))
    places = max_predictions(mlm_probability, input_ids.shape[1])
    positions = np.argsort(scores, axis=1, kind="stable")[:, :places]
    valid = np.arange(places) < chosen[:, None]
    # Ascending, with the places that are not used (S is beyond every position) at the end.
    positions = np.where(valid, np.sort(np.where(valid, positions, input_ids.shape[1]), axis=1), 0)
    rows = np.arange(len(input_ids))[:, None]
    labels = np.where(valid, input_ids[rows, positions], 0)
    seen = _disguise(labels, words[rows, positions], ids)
    hidden = input_ids.copy()
    hidden[np.broadcast_to(rows, valid.shape)[valid], positions[valid]] = seen[valid]
    return Masked(hidden, positions.astype(np.int32), labels.astype(np.int32), valid)


def _disguise(labels: NDArray[np.int32], words: NDArray[np.uint64], ids: TokenIds) -> NDArray[np.int64]:
    chance = unit_floats(words[:, :, 1])
    random = (words[:, :, 2] % np.uint64(ids.size)).astype(np.int64)
    return np.where(chance < _MASKED, ids.mask, np.where(chance < _MASKED_OR_RANDOM, random, labels))
