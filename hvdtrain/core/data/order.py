"""The order of samples: a function of seed, epoch and global batch size, cut among ranks without loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.random import random_words

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Position:
    """Where a run stands: the epoch, from 0, and how many of its samples are used up."""

    epoch: int
    offset: int

    @classmethod
    def after(cls, samples_consumed: int, n_samples: int) -> Position:
        """The position after `samples_consumed` samples of a training set of `n_samples`."""
        return cls(*divmod(samples_consumed, n_samples))


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The samples of one update over all ranks.

    Attributes:
        epoch: which pass over the training set, from 0.
        indices: samples of the training set, int64 (at most global_batch_size,).
        samples_consumed: samples used by the run once this update is done; where a resumed run starts.
    """

    epoch: int
    indices: Indices
    samples_consumed: int


def epoch_order(seed: int, epoch: int, n_samples: int) -> Indices:
    """A permutation of the samples for one epoch: each gets a random 64-bit word, and they are sorted by it.

    Args:
        seed: the job's seed.
        epoch: from 0.
        n_samples: size of the training set.

    Returns:
        int64 (n_samples,), each sample once.
    """
    return np.argsort(random_words(n_samples, seed, "order", epoch), kind="stable")


def global_batches(
    seed: int, n_samples: int, global_batch_size: int, start_samples: int = 0
) -> Iterator[GlobalBatch]:
    """The batches of a run, for ever; none crosses the end of an epoch, so an epoch's last may be smaller.

    Args:
        seed: the job's seed.
        n_samples: size of the training set, at least 1.
        global_batch_size: samples an update.
        start_samples: samples that were consumed before; 0 starts a run, `samples_consumed` resumes it.

    Yields:
        One global batch an update.
    """
    start = Position.after(start_samples, n_samples)
    epoch, offset = start.epoch, start.offset
    while True:
        order = epoch_order(seed, epoch, n_samples)
        for first in range(offset, n_samples, global_batch_size):
            indices = order[first : first + global_batch_size]
            yield GlobalBatch(epoch, indices, epoch * n_samples + first + len(indices))
        epoch, offset = epoch + 1, 0


def updates_per_epoch(n_samples: int, global_batch_size: int) -> int:
    """Updates in one epoch, the smaller last one included."""
    return -(-n_samples // global_batch_size)


def rank_share(indices: Indices, rank: int, size: int, accumulation: int, per_device: int) -> list[Indices]:
    """The micro-batches of one rank for one update.

    The batch is cut evenly and contiguously among the ranks (as by `np.array_split`), and a rank's share into
    micro-batches filled one after the other, so a small last batch leaves the last ones short or empty.
    Over all ranks and micro-batches every sample comes exactly once.

    Args:
        indices: the global batch, int64 (at most size * accumulation * per_device,).
        rank: this rank, from 0.
        size: number of ranks.
        accumulation: micro-batches an update.
        per_device: most rows of a micro-batch.

    Returns:
        `accumulation` arrays of at most `per_device` samples.

    Raises:
        ValueError: the batch is larger than all micro-batches together.
    """
    room = size * accumulation * per_device
    if len(indices) > room:
        raise ValueError(
            f"a global batch of {len(indices)} samples does not fit "
            f"{size} ranks x {accumulation} micro-batches x {per_device} rows = {room}"
        )
    share = np.array_split(indices, size)[rank]
    return [share[m * per_device : (m + 1) * per_device] for m in range(accumulation)]
