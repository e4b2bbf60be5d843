"""Text classification: one class for each text, or pair of texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.batches import Batch, Dataset, TextFacts
from hvdtrain.core.data.labelled_corpus import LabelledSequences, prepare_rows
from hvdtrain.core.data.labelled_text import LabelledTextSpec
from hvdtrain.core.data.labels import check_order
from hvdtrain.core.data.order import Indices
from hvdtrain.core.data.tokenizer_files import tokenizer_files
from hvdtrain.core.spec.sections import TaskSection
from hvdtrain.core.tasks.classification import ClassMeasures, targets_of
from hvdtrain.core.tasks.task import Shapes, check_length

# The width of the narrowest batch.
_NARROWEST = 16


class TaskSpec(TaskSection):
    """Text classification; a mean loss divides by texts."""

    type: Literal["text_classification"] = "text_classification"


class DataSpec(LabelledTextSpec):
    """Texts with labels."""


def check(model: Any, data: DataSpec) -> None:
    """Whether the model can tell the classes apart and take such texts; ValueError where it cannot."""
    check_length(data.max_seq_length, model)
    if model.num_labels is None:
        raise ValueError(
            "model.num_labels: required by the task text_classification: set it to the number of classes"
        )
    if data.class_names and len(data.class_names) != model.num_labels:
        raise ValueError(
            f"data.class_names has {len(data.class_names)} names, and model.num_labels is {model.num_labels}"
        )
    if data.text_pair_field is not None and getattr(model, "type_vocab_size", 2) < 2:
        raise ValueError(
            f"data.text_pair_field {data.text_pair_field!r}: pairs of texts have two segment types, and "
            f"model.type_vocab_size is {model.type_vocab_size}"
        )


def shapes(data: DataSpec, task: TaskSpec) -> Shapes:
    """Of one text."""
    del task
    return Shapes(data.max_seq_length, 1)


def prepare(
    model: Any, data: DataSpec, task: TaskSpec, seed: int, announce: Callable[[str], None]
) -> Dataset:
    """As `Task.prepare`: tokenise the texts on this node, or open what was tokenised before."""
    del task
    found = prepare_rows(data, model.vocab_size, model.num_labels, seed, announce)
    check_order(found.labels, model.init_from, announce)
    corpus = found.corpus
    length, pad = data.max_seq_length, corpus.token_ids.pad
    return Dataset(
        LabelledSplit(found.train, length, pad),
        LabelledSplit(found.validation, length, pad),
        corpus.fingerprint,
        files=tokenizer_files(corpus.tokenizer_path.read_text(encoding="utf-8"), length, corpus.token_ids),
        config={"pad_token_id": pad, **found.labels.config},
        text=TextFacts(
            corpus.token_ids.size, model.vocab_size, corpus.unknown_share, data.tokenizer_file is None
        ),
        facts={"classes": list(found.labels.names)},
    )


def measures(model: Any) -> ClassMeasures:
    """What an evaluation counts."""
    return ClassMeasures(model.num_labels)


def summarise(mean_loss: float | None) -> dict[str, float | None]:
    """As `Task.summarise`: nothing more than what is measured."""
    del mean_loss
    return {}


def widths(max_seq_length: int) -> tuple[int, ...]:
    """The widths that batches have: few, since TensorFlow traces its functions for each.

    Returns:
        Powers of two from 16 that are below `max_seq_length`, and that; ascending.
    """
    powers = []
    width = _NARROWEST
    while width < max_seq_length:
        powers.append(width)
        width *= 2
    return (*powers, max_seq_length)


@dataclass(frozen=True, eq=False)
class LabelledSplit:
    """Texts with a class each.

    Attributes:
        rows: the tokens and the classes.
        max_seq_length: no text is longer.
        pad: id of [PAD].
    """

    rows: LabelledSequences
    max_seq_length: int
    pad: int

    def __len__(self) -> int:
        return len(self.rows.sequences)

    @property
    def costs(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return self.rows.sequences.lengths

    @cached_property
    def _widths(self) -> NDArray[np.int64]:
        return np.array(widths(self.max_seq_length))

    def collate(self, indices: Indices, epoch: int, rows: int) -> Batch:
        """As `Split.collate`; nothing is random.

        Returns:
            Inputs of b = `rows` rows of S tokens, where S is the smallest of `widths` that holds the longest
            text: `input_ids`, filled up with [PAD], `attention_mask` (1 on tokens, 0 on padding) and
            `token_type_ids` (1 on the second text of a pair), all int32 (b, S). Targets are the classes,
            int32 (b, 1), with loss weights 1; the weight counts texts. Rows beyond the data are [PAD]; their
            attention mask is 1 everywhere, because a softmax over nothing is NaN in some attention kernels.
        """
        del epoch
        lengths = self.costs[indices]
        width = int(self._widths[np.searchsorted(self._widths, lengths.max(initial=0))])
        tokens = np.full((rows, width), self.pad, dtype=np.int32)
        for row, index in enumerate(indices):
            tokens[row, : lengths[row]] = self.rows.sequences[index]
        places, ends = np.arange(width), np.full(rows, width)
        ends[: len(indices)] = lengths
        seconds = ends.copy()
        seconds[: len(indices)] = self.rows.second_starts[indices]
        attention = places < ends[:, None]
        targets = targets_of(self.rows.labels[indices], rows)
        return Batch(
            inputs={
                "input_ids": tokens,
                "attention_mask": attention.astype(np.int32),
                "token_type_ids": (attention & (places >= seconds[:, None])).astype(np.int32),
            },
            targets=targets.targets,
            loss_weights=targets.loss_weights,
            weight=targets.weight,
            counts={"tokens": int(lengths.sum()), "samples": len(indices)},
        )
