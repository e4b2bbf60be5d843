"""Sequences in memory-mapped files: what the cache holds and training reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.errors import DataError
from hvdtrain.core.random import random_words


@dataclass(frozen=True, eq=False)
class Sequences:
    """A view of some of the cached sequences, read from disk when they are used.

    Attributes:
        tokens: every token of the cache, uint16 or uint32 (total,).
        offsets: where each cached sequence starts in `tokens`, and the end of the last: int64 (count + 1,).
        members: which of the cached sequences are in this view: int64 (len(self),).
    """

    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    members: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger]:
        """Token ids of one sequence with its [CLS] and [SEP], (length,); a view, not a copy."""
        member = self.members[index]
        return self.tokens[self.offsets[member] : self.offsets[member + 1]]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each sequence, int64 (len(self),), without reading one."""
        return self.offsets[self.members + 1] - self.offsets[self.members]

    def has_other_tokens(self, special: Collection[int]) -> bool:
        """Whether there is any token but these, which nobody is asked to predict."""
        ids = np.fromiter(special, dtype=self.tokens.dtype)
        return any(not np.isin(self[index], ids).all() for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens, ready for a task.

    Attributes:
        train: the sequences to train on.
        validation: the sequences to evaluate on; none of them is in `train`.
        tokenizer_path: the Hugging Face `tokenizer.json` that made the tokens.
        token_ids: size and special ids of the tokenizer.
        max_seq_length: no sequence is longer.
        fingerprint: hash of the tokens and the split; ranks that train together must agree on it.
        directories: of the caches: the one trained on, and that of files to evaluate on where there are any.
        split: share of the sequences to evaluate on, and the seed that chose them, where there are no files.
        unknown_share: share of the text's tokens that are [UNK], which nobody is asked to predict.
    """

    train: Sequences
    validation: Sequences
    tokenizer_path: Path
    token_ids: TokenIds
    max_seq_length: int
    fingerprint: str
    directories: tuple[Path, ...] = ()
    split: tuple[float, int] = (0.0, 0)
    unknown_share: float = 0.0


def split_members(
    count: int, validation_split: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which sequences train and which validate: a pure function of the arguments.

    Args:
        count: number of sequences.
        validation_split: fraction to validate on; above 0 it gives at least one sequence.
        seed: the job's seed.

    Returns:
        Training and validation members, each ascending int64; together every sequence once.

    Raises:
        DataError: there are too few sequences to keep one for training and one for validation.
    """
    if validation_split == 0.0:
        return np.arange(count), np.arange(0)
    if count < 2:
        raise DataError(
            f"data: the corpus gives {count} sequence, too few for data.validation_split {validation_split}; "
            "use more text, a smaller data.max_seq_length, or validation_split: 0"
        )
    chosen = min(max(1, round(validation_split * count)), count - 1)
    order = np.argsort(random_words(count, seed, "split"), kind="stable")
    return np.sort(order[chosen:]), np.sort(order[:chosen])
