"""Masked language modelling (Devlin et al. 2018, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hvdtrain.core.data.batches import Batch, Dataset, TextFacts
from hvdtrain.core.data.cache import prepare as prepare_text
from hvdtrain.core.data.corpus import Corpus, Sequences
from hvdtrain.core.data.masking import mask_tokens, mask_words, max_predictions
from hvdtrain.core.data.order import Indices
from hvdtrain.core.data.store import fingerprint_with
from hvdtrain.core.data.text import TextSpec
from hvdtrain.core.data.tokenizer_files import tokenizer_files
from hvdtrain.core.data.wordpiece import WordPieceScheme
from hvdtrain.core.spec.sections import TaskSection
from hvdtrain.core.tasks.task import Shapes, check_length, perplexity


class TaskSpec(TaskSection):
    """Masked language modelling; `normalize` says what the divisor of a mean loss counts."""

    type: Literal["masked_lm"] = "masked_lm"
    mlm_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15


class DataSpec(TextSpec):
    """Text, and how a WordPiece tokenizer is trained on it."""

    lowercase: bool = True
    strip_accents: bool = False

    @property
    def scheme(self) -> WordPieceScheme:
        """How text becomes sequences."""
        return WordPieceScheme(self.lowercase, self.strip_accents)


def check(model: Any, data: DataSpec) -> None:
    """Whether the model can take such sequences and predicts tokens; ValueError where it does not."""
    check_length(data.max_seq_length, model)
    classes = getattr(model, "num_labels", None)
    if classes is not None:
        raise ValueError(
            f"model.num_labels {classes}: a model with a classifier does not predict tokens: leave it out, "
            "or set task.type: text_classification"
        )


def shapes(data: DataSpec, task: TaskSpec) -> Shapes:
    """Of one sequence."""
    return Shapes(data.max_seq_length, max_predictions(task.mlm_probability, data.max_seq_length))


def prepare(
    model: Any, data: DataSpec, task: TaskSpec, seed: int, announce: Callable[[str], None]
) -> Dataset:
    """Tokenise the text on this node, or open what was tokenised before.

    Args:
        model: the spec's model section, whose `vocab_size` bounds the tokenizer's.
        data: the data section.
        task: the task section.
        seed: the job's seed.
        announce: called with a line for the user when the call will take a while.

    Raises:
        DataError: see `hvdtrain.core.data.cache.prepare`.
    """
    corpus = prepare_text(data, model.vocab_size, seed, announce=announce)
    return MaskedText.of(corpus, model.vocab_size, data, task, seed)


def summarise(mean_loss: float | None) -> dict[str, float | None]:
    """As `Task.summarise`: the perplexity."""
    return perplexity(mean_loss)


@dataclass(frozen=True, eq=False)
class MaskedText(Dataset):
    """Text whose tokens are given new masks in every epoch."""

    corpus: Corpus | None = None

    @classmethod
    def of(cls, corpus: Corpus, vocab_size: int, data: DataSpec, task: TaskSpec, seed: int) -> MaskedText:
        """Both splits of a corpus."""
        train, validation = (
            MaskedSplit(sequences, corpus, task, seed) for sequences in (corpus.train, corpus.validation)
        )
        return cls(
            train,
            validation,
            corpus.fingerprint,
            files=tokenizer_files(
                corpus.tokenizer_path.read_text(encoding="utf-8"), corpus.max_seq_length, corpus.token_ids
            ),
            config={"pad_token_id": corpus.token_ids.pad},
            text=TextFacts(
                corpus.token_ids.size, vocab_size, corpus.unknown_share, data.tokenizer_file is None
            ),
            corpus=corpus,
        )

    def fingerprint_with(self, directory: Path) -> str:
        """As `Dataset.fingerprint_with`: the tokenizer's file may have said the same otherwise."""
        assert self.corpus is not None
        return fingerprint_with(self.corpus, directory / "tokenizer.json")


@dataclass(frozen=True, eq=False)
class MaskedSplit:
    """Sequences, each of which is masked by (seed, epoch, sample).

    Attributes:
        sequences: the tokens.
        corpus: which they are from.
        task: how many are masked, and what the divisor counts.
        seed: the job's.
    """

    sequences: Sequences
    corpus: Corpus
    task: TaskSpec
    seed: int

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def costs(self) -> NDArray[np.int64]:
        """Tokens of each sequence."""
        return self.sequences.lengths

    def collate(self, indices: Indices, epoch: int, rows: int) -> Batch:
        """As `Split.collate`.

        Returns:
            Inputs of b = `rows` rows of S tokens: `input_ids`, `attention_mask` (1 on tokens, 0 on padding),
            `token_type_ids` (zeros), all int32 (b, S), and `masked_positions`, where to predict, int32
            (b, M).
            Targets are the right tokens, int32 (b, M). Loss weights by token are 1, by example 1 / number of
            predictions in the row; the weight counts predictions, or examples with one. `tokens` counts [CLS]
            and [SEP] as well. Rows beyond the data are [PAD]; their attention mask is 1 everywhere, because a
            softmax over nothing is NaN in some attention kernels, and NaN times weight 0 is NaN.
        """
        ids, length = self.corpus.token_ids, self.corpus.max_seq_length
        tokens = np.full((rows, length), ids.pad, dtype=np.int32)
        attention = np.ones_like(tokens)
        attention[: len(indices)] = 0
        for row, index in enumerate(indices):
            sequence = self.sequences[index]
            tokens[row, : len(sequence)] = sequence
            attention[row, : len(sequence)] = 1
        words = np.zeros((rows, length, 3), dtype=np.uint64)
        words[: len(indices)] = mask_words(self.seed, epoch, indices, length)
        masked = mask_tokens(tokens, words, self.task.mlm_probability, ids)
        predictions = masked.valid.sum(axis=1)
        by_token = self.task.normalize == "token"
        share = np.ones(rows) if by_token else 1.0 / np.maximum(predictions, 1)
        return Batch(
            inputs={
                "input_ids": masked.input_ids,
                "attention_mask": attention,
                "token_type_ids": np.zeros_like(tokens),
                "masked_positions": masked.positions,
            },
            targets=masked.labels,
            loss_weights=np.where(masked.valid, share[:, None], 0.0),
            weight=float(predictions.sum() if by_token else np.count_nonzero(predictions)),
            counts={"tokens": int(attention[: len(indices)].sum()), "samples": len(indices)},
        )
