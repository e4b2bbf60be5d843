"""Causal language modelling: each token is predicted from those before it (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.batches import Batch, Dataset, TextFacts
from hvdtrain.core.data.byte_level_bpe import ByteLevelBPE, bpe_files
from hvdtrain.core.data.cache import prepare as prepare_text
from hvdtrain.core.data.corpus import Corpus, Sequences
from hvdtrain.core.data.order import Indices
from hvdtrain.core.data.text import TextSpec
from hvdtrain.core.spec.sections import TaskSection
from hvdtrain.core.tasks.task import Shapes, check_length, perplexity


class TaskSpec(TaskSection):
    """Causal language modelling; Megatron-LM's names for documents that share a sequence.

    Attributes:
        reset_position_ids: whether positions are counted from 0 in each document.
        reset_attention_mask: whether a document sees nothing of those before it in the sequence.
    """

    type: Literal["causal_lm"] = "causal_lm"
    reset_position_ids: bool = False
    reset_attention_mask: bool = False


class DataSpec(TextSpec):
    """Text, on which a byte-level BPE tokenizer is trained."""

    @property
    def scheme(self) -> ByteLevelBPE:
        """How text becomes sequences."""
        return ByteLevelBPE()


def check(model: Any, data: DataSpec) -> None:
    """Whether the model can take such sequences; ValueError where it cannot."""
    check_length(data.max_seq_length, model)


def shapes(data: DataSpec, task: TaskSpec) -> Shapes:
    """Of one sequence."""
    del task
    return Shapes(data.max_seq_length, data.max_seq_length - 1)


def prepare(
    model: Any, data: DataSpec, task: TaskSpec, seed: int, announce: Callable[[str], None]
) -> Dataset:
    """As `Task.prepare`: tokenise the text on this node, or open what was tokenised before."""
    corpus = prepare_text(data, model.vocab_size, seed, announce=announce)
    tokenizer, ids = corpus.tokenizer_path.read_text(encoding="utf-8"), corpus.token_ids
    return Dataset(
        CausalSplit(corpus.train, corpus, task),
        CausalSplit(corpus.validation, corpus, task),
        corpus.fingerprint,
        files=bpe_files(tokenizer, corpus.max_seq_length, ids),
        config={"bos_token_id": ids.cls, "eos_token_id": ids.sep},
        text=TextFacts(ids.size, model.vocab_size, corpus.unknown_share, data.tokenizer_file is None),
    )


def summarise(mean_loss: float | None) -> dict[str, float | None]:
    """As `Task.summarise`: the perplexity."""
    return perplexity(mean_loss)


def next_token_batch(ids: NDArray[np.int32]) -> Batch:
    """A batch whose last prediction in each row is the token behind `ids`.

    Args:
        ids: tokens, int32 (rows, length).
    """
    rows, length = ids.shape
    # The last token of a row predicts nothing. This one is seen by no other, and its position is one that any
    # model has.
    inputs = np.concatenate([ids, np.zeros((rows, 1), np.int32)], axis=1)
    positions = np.tile(np.append(np.arange(length, dtype=np.int32), np.int32(0)), (rows, 1))
    return Batch(
        inputs={"input_ids": inputs, "position_ids": positions},
        targets=inputs[:, 1:],
        loss_weights=np.zeros((rows, length)),
        weight=0.0,
        counts={"tokens": ids.size, "samples": rows},
    )


@dataclass(frozen=True, eq=False)
class CausalSplit:
    """Sequences in which every token but the first is predicted.

    Attributes:
        sequences: the tokens.
        corpus: which they are from.
        task: how documents in one sequence are kept apart, and what the divisor counts.
    """

    sequences: Sequences
    corpus: Corpus
    task: TaskSpec

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def costs(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return self.sequences.lengths

    def collate(self, indices: Indices, epoch: int, rows: int) -> Batch:
        """As `Split.collate`; nothing is random.

        Returns:
            Inputs of `rows` rows of S tokens, int32 (rows, S): `input_ids`, filled up with the end of text;
            `document_ids`, numbered from 0, and `position_ids`, where the task asks for them. Targets are the
            next tokens, int32 (rows, S - 1). Loss weights by token are 1, by example 1 / number of
            predictions in the row; the weight counts predictions, or examples. No mask is needed for what is
            filled up: it lies behind all that is predicted.
        """
        del epoch
        length, end = self.corpus.max_seq_length, self.corpus.token_ids.sep
        ids = np.full((rows, length), end, dtype=np.int32)
        lengths = np.zeros(rows, dtype=np.int64)
        for row, index in enumerate(indices):
            sequence = self.sequences[index]
            ids[row, : len(sequence)] = sequence
            lengths[row] = len(sequence)
        predictions = np.maximum(lengths - 1, 0)
        valid = np.arange(length - 1) < predictions[:, None]
        by_token = self.task.normalize == "token"
        share = np.ones(rows) if by_token else 1.0 / np.maximum(predictions, 1)
        return Batch(
            inputs={"input_ids": ids, **self._documents(ids, end)},
            targets=ids[:, 1:],
            loss_weights=np.where(valid, share[:, None], 0.0),
            weight=float(predictions.sum() if by_token else np.count_nonzero(predictions)),
            counts={"tokens": int(lengths.sum()), "samples": len(indices)},
        )

    def _documents(self, ids: NDArray[np.int32], end: int) -> dict[str, NDArray[np.int32]]:
        # A document's end belongs to it.
        first = np.zeros(ids.shape, dtype=bool)
        first[:, 1:] = ids[:, :-1] == end
        found = {}
        if self.task.reset_attention_mask:
            found["document_ids"] = np.cumsum(first, axis=1, dtype=np.int32)
        if self.task.reset_position_ids:
            places = np.arange(ids.shape[1], dtype=np.int32)
            found["position_ids"] = places - np.maximum.accumulate(np.where(first, places, 0), axis=1)
        return found
