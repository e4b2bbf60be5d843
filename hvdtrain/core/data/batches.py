"""Micro-batches: NumPy arrays, ready for either framework."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.order import GlobalBatch, Indices, global_batches, rank_share
from hvdtrain.core.update.accumulation import Accumulation

T = TypeVar("T")

# Every evaluation asks the same questions.
EVALUATION_EPOCH = -1


@dataclass(frozen=True, eq=False)
class Batch:
    """What one forward and backward pass takes.

    The tasks on text fill a batch up to the same number of rows, whatever data is left: rows beyond the data
    have weight 0 in the loss. The task `custom` has real rows only, and so none where no data is left.

    Attributes:
        inputs: what the model takes, by name, (rows, ...).
        targets: the right answers, one a prediction, (rows, ...).
        loss_weights: factor of each prediction's loss in the sum, 0 beyond the predictions, float64 of the
            shape of the losses: one a prediction, or (rows,) where a function gives one an example.
        weight: w(r, m), what the divisor of the update counts.
        counts: of real rows (`samples`), and of what the task counts beside them (`tokens`).
    """

    inputs: Mapping[str, NDArray[Any]]
    targets: NDArray[Any]
    loss_weights: NDArray[np.float64]
    weight: float
    counts: Mapping[str, int]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by name: the inputs, `targets` and `loss_weights`."""
        return {**self.inputs, "targets": self.targets, "loss_weights": self.loss_weights}


class Split(Protocol):
    """Samples to train on, or to evaluate on.

    Attributes:
        costs: what each sample costs, in the unit of `batch.target_tokens_per_update`, int64 (len(self),).
    """

    @property
    def costs(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def collate(self, indices: Indices, epoch: int, rows: int) -> Batch:
        """Make a micro-batch; the same arguments give the same batch, on any rank and in any run.

        Args:
            indices: which samples, int64 (at most rows,); none gives a batch of weight 0.
            epoch: from 0, or `EVALUATION_EPOCH`; what is random depends on it.
            rows: of every array; a task that needs no equal shapes may give len(indices) instead.
        """
        ...


@runtime_checkable
class DrawsAhead(Split, Protocol):
    """Samples that others draw while this process computes.

    Attributes:
        ahead: micro-batches that are worth beginning before the one that is needed.
    """

    @property
    def ahead(self) -> int: ...

    def start(self, indices: Indices, epoch: int, rows: int) -> Callable[[], Batch]:
        """Begin a micro-batch; what is returned waits for it. Arguments as those of `collate`."""
        ...


@dataclass(frozen=True)
class TextFacts:
    """How a text was tokenised.

    Attributes:
        tokenizer_size: tokens of the tokenizer.
        vocab_size: tokens of the model.
        unknown_share: share of the text's tokens that are [UNK], which nobody is asked to predict.
        trained: whether the tokenizer was trained on the text, and not given.
    """

    tokenizer_size: int
    vocab_size: int
    unknown_share: float
    trained: bool


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a task has prepared for a run.

    Attributes:
        train: the samples to train on.
        validation: the samples to evaluate on; none of them is in `train`.
        fingerprint: hash of all samples and of the split; ranks that train together must agree on it.
        files: content of the files that belong to a saved model, such as a tokenizer's, by name.
        config: what the data adds to a saved model's `config.json`, such as the id of [PAD].
        text: how its text was tokenised; None where the data is not text.
        facts: what the fingerprint stands for, such as lengths and shapes, by name and JSON-ready: what ranks
            that differ are told.
    """

    train: Split
    validation: Split
    fingerprint: str
    files: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    text: TextFacts | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint_with(self, directory: Path) -> str:
        """The fingerprint that an earlier version gave the same samples in a run that saved `directory`."""
        del directory
        return self.fingerprint


@dataclass(frozen=True)
class Window:
    """One rank's part of one update.

    Attributes:
        micro_batches: one for each accumulation step; late ones may be empty at the end of an epoch.
        epoch: from 0.
        samples_global: samples of this update over all ranks.
        samples_consumed: samples used by the whole job once this update is done.
    """

    micro_batches: tuple[Batch, ...]
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
        return sum(batch.counts["tokens"] for batch in self.micro_batches)

    @property
    def own_samples(self) -> int:
        """This rank's real samples."""
        return sum(batch.counts["samples"] for batch in self.micro_batches)


def train_windows(
    split: Split,
    *,
    seed: int,
    accumulation: Accumulation,
    rank: int,
    start_samples: int = 0,
    start_update: int = 1,
) -> Iterator[Window]:
    """One rank's windows of a run, for ever; the same global batches whatever the ranks and the accumulation.

    Args:
        split: the samples.
        seed: the job's seed.
        accumulation: how many samples an update takes, on how many ranks, in micro-batches of how many rows.
        rank: this rank, from 0.
        start_samples: samples consumed before; the next window is the one an unbroken run would have had.
        start_update: number of the first window, counted from 1.

    Yields:
        One window an update.
    """
    per_device = accumulation.per_device
    start = _starter(split)

    def started() -> Iterator[tuple[GlobalBatch, Callable[[], Batch]]]:
        for batch in global_batches(seed, split.costs, accumulation, start_samples, start_update):
            for share in rank_share(batch.indices, rank, accumulation.size, batch.micro_batches, per_device):
                yield batch, start(share, batch.epoch, per_device)

    done: list[Batch] = []
    for batch, finish in _ahead(started(), split):
        done.append(finish())
        if len(done) == batch.micro_batches:
            yield Window(tuple(done), batch.epoch, len(batch.indices), batch.samples_consumed)
            done = []


def eval_batches(split: Split, *, per_device: int, rank: int, size: int) -> Iterator[Batch]:
    """One rank's part of an evaluation, the same questions each time.

    Each sample comes once over all ranks, and every rank gets `eval_rounds` batches, the last of
    them short or empty where its share is smaller.

    Args:
        split: the samples.
        per_device: b, rows of a batch.
        rank: this rank, from 0.
        size: number of ranks.

    Yields:
        Batches of `per_device` rows.
    """
    rounds = eval_rounds(len(split), per_device, size)
    start, shares = _starter(split), rank_share(np.arange(len(split)), rank, size, rounds, per_device)
    for finish in _ahead((start(share, EVALUATION_EPOCH, per_device) for share in shares), split):
        yield finish()


def eval_rounds(n_samples: int, per_device: int, size: int) -> int:
    """Batches that every rank takes in one evaluation of `n_samples`: enough for the largest share."""
    largest_share = -(-n_samples // size)
    return -(-largest_share // per_device)


def _starter(split: Split) -> Callable[[Indices, int, int], Callable[[], Batch]]:
    if isinstance(split, DrawsAhead):
        return split.start
    return lambda indices, epoch, rows: partial(split.collate, indices, epoch, rows)


def _ahead(started: Iterator[T], split: Split) -> Iterator[T]:
    """What was started, in order, each once as many more have been as the split draws ahead."""
    ahead = split.ahead if isinstance(split, DrawsAhead) else 0
    waiting: deque[T] = deque()
    for each in started:
        waiting.append(each)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
