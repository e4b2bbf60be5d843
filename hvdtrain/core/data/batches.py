"""Micro-batches: NumPy arrays of static shapes, ready for either framework."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.accumulation import Accumulation
from hvdtrain.core.data.dataset import Dataset, Sequences
from hvdtrain.core.data.masking import EVALUATION_EPOCH, mask_tokens, mask_words
from hvdtrain.core.data.order import Indices, global_batches, rank_share
from hvdtrain.core.data.tokenizer import TokenIds

if TYPE_CHECKING:
    from hvdtrain.core.sections import TaskSpec


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """What one forward and backward pass takes: always b rows of S tokens with M predictions at most.

    Rows beyond the data are [PAD] with weight 0; their attention mask is 1 everywhere, because a softmax over
    nothing is NaN in some attention kernels, and NaN times weight 0 is NaN.

    Attributes:
        input_ids: int32 (b, S).
        attention_mask: 1 on tokens, 0 on padding, int32 (b, S).
        token_type_ids: zeros, int32 (b, S).
        masked_positions: where to predict, int32 (b, M).
        masked_labels: the right tokens, int32 (b, M).
        masked_weights: factor of each prediction's loss in the sum, 0 beyond the predictions, float64 (b, M).
            By token: 1. By example: 1 / number of predictions in the row.
        weight: w(r, m), what the divisor of the update counts: predictions, or examples with a prediction.
        tokens: real tokens, with [CLS] and [SEP].
        samples: real rows.
    """

    input_ids: NDArray[np.int32]
    attention_mask: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    masked_positions: NDArray[np.int32]
    masked_labels: NDArray[np.int32]
    masked_weights: NDArray[np.float64]
    weight: float
    tokens: int
    samples: int

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays a model takes, by field name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class Window:
    """One rank's part of one update.

    Attributes:
        micro_batches: one for each accumulation step; late ones may be empty at the end of an epoch.
        epoch: from 0.
        samples_global: samples of this update over all ranks.
        samples_consumed: samples used by the whole job once this update is done.
    """

    micro_batches: tuple[MicroBatch, ...]
    epoch: int
    samples_global: int
    samples_consumed: int

    @property
    def weight(self) -> float:
        """This rank's Σ w(r, m)."""
        return sum(batch.weight for batch in self.micro_batches)

    @property
    def tokens(self) -> int:
        """This rank's real tokens."""
        return sum(batch.tokens for batch in self.micro_batches)


@dataclass(frozen=True)
class Recipe:
    """How sequences become micro-batches, the same for every batch of a run."""

    max_seq_length: int
    mlm_probability: float
    normalize: Literal["token", "example"]
    seed: int
    token_ids: TokenIds

    @classmethod
    def of(cls, dataset: Dataset, task: TaskSpec, seed: int) -> Recipe:
        """The recipe for a dataset and the spec's task section."""
        return cls(dataset.max_seq_length, task.mlm_probability, task.normalize, seed, dataset.token_ids)


def collate(sequences: Sequences, indices: Indices, epoch: int, rows: int, recipe: Recipe) -> MicroBatch:
    """Make a micro-batch.

    Args:
        sequences: where the samples are.
        indices: which samples, int64 (at most rows,); none gives a batch of weight 0.
        epoch: for the masks, from 0 or `EVALUATION_EPOCH`.
        rows: b.
        recipe: S, M and the task.

    Returns:
        Arrays of `rows` rows.
    """
    ids = recipe.token_ids
    tokens = np.full((rows, recipe.max_seq_length), ids.pad, dtype=np.int32)
    attention = np.ones_like(tokens)
    attention[: len(indices)] = 0
    for row, index in enumerate(indices):
        sequence = sequences[index]
        tokens[row, : len(sequence)] = sequence
        attention[row, : len(sequence)] = 1
    words = np.zeros((rows, recipe.max_seq_length, 3), dtype=np.uint64)
    words[: len(indices)] = mask_words(recipe.seed, epoch, indices, recipe.max_seq_length)
    masked = mask_tokens(tokens, words, recipe.mlm_probability, ids)
    predictions = masked.valid.sum(axis=1)
    by_token = recipe.normalize == "token"
    share = np.ones(rows) if by_token else 1.0 / np.maximum(predictions, 1)
    return MicroBatch(
        input_ids=masked.input_ids,
        attention_mask=attention,
        token_type_ids=np.zeros_like(tokens),
        masked_positions=masked.positions,
        masked_labels=masked.labels,
        masked_weights=np.where(masked.valid, share[:, None], 0.0),
        weight=float(predictions.sum() if by_token else np.count_nonzero(predictions)),
        tokens=int(attention[: len(indices)].sum()),
        samples=len(indices),
    )


def train_windows(
    dataset: Dataset,
    task: TaskSpec,
    *,
    seed: int,
    accumulation: Accumulation,
    rank: int,
    start_samples: int = 0,
    start_update: int = 1,
) -> Iterator[Window]:
    """One rank's windows of a run, for ever; the same global batches whatever the ranks and the accumulation.

    Args:
        dataset: its `train` sequences are used.
        task: the spec's task section.
        seed: the job's seed.
        accumulation: how many samples an update takes, on how many ranks, in micro-batches of how many rows.
        rank: this rank, from 0.
        start_samples: samples consumed before; the next window is the one an unbroken run would have had.
        start_update: number of the first window, counted from 1.

    Yields:
        One window an update.
    """
    recipe, per_device = Recipe.of(dataset, task, seed), accumulation.per_device
    for batch in global_batches(seed, dataset.train.lengths, accumulation, start_samples, start_update):
        shares = rank_share(batch.indices, rank, accumulation.size, batch.micro_batches, per_device)
        yield Window(
            tuple(collate(dataset.train, share, batch.epoch, per_device, recipe) for share in shares),
            batch.epoch,
            len(batch.indices),
            batch.samples_consumed,
        )


def eval_batches(
    dataset: Dataset, task: TaskSpec, *, seed: int, per_device: int, rank: int, size: int
) -> Iterator[MicroBatch]:
    """One rank's part of an evaluation, the same questions each time.

    Each validation sequence comes once over all ranks, and every rank gets `eval_rounds` batches, the last of
    them short or empty where its share is smaller.

    Args:
        dataset: its `validation` sequences are used.
        task: the spec's task section.
        seed: the job's seed.
        per_device: b, rows of a batch.
        rank: this rank, from 0.
        size: number of ranks.

    Yields:
        Batches of `per_device` rows.
    """
    recipe = Recipe.of(dataset, task, seed)
    rounds = eval_rounds(len(dataset.validation), per_device, size)
    for share in rank_share(np.arange(len(dataset.validation)), rank, size, rounds, per_device):
        yield collate(dataset.validation, share, EVALUATION_EPOCH, per_device, recipe)


def eval_rounds(n_samples: int, per_device: int, size: int) -> int:
    """Batches that every rank takes in one evaluation of `n_samples`: enough for the largest share."""
    largest_share = -(-n_samples // size)
    return -(-largest_share // per_device)
