"""A dataset's global batches, dealt to the ranks of a loop of the user's own as jobs deal them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvdtrain.core.data.order import Indices, Position, global_batches, rank_share
from hvdtrain.core.data.samples import length_of
from hvdtrain.core.data.seeding import seed_generators
from hvdtrain.core.dropin.counts import check_counts
from hvdtrain.core.errors import DataError, SpecError
from hvdtrain.core.update.accumulation import Accumulation

_POSITION = "samples_consumed"


@dataclass(frozen=True, eq=False)
class Share:
    """One rank's part of a micro-batch.

    Attributes:
        indices: samples of the dataset, int64; none where an epoch's last global batch has too few.
        epoch: from 0.
        samples_consumed: of the whole job, once this micro-batch has been used.
    """

    indices: Indices
    epoch: int
    samples_consumed: int


@dataclass(eq=False)
class Dealer:
    """Deals the samples of a map-style dataset, and keeps the position: one integer, the same on every rank.

    The order, the global batches and each rank's part of them are those of jobs: see `global_batches` and
    `rank_share`. The position is of global batches whose micro-batches have all been handed out.

    Attributes:
        call: how the user calls the loader, for errors.
        dataset: with `len(dataset)` and `dataset[i]`.
        global_batch_size: samples of a global batch, over all ranks and micro-batches.
        rank: this rank, from 0.
        size: number of ranks.
        seed: of the order.
        shuffle: whether the order is random, else that of the dataset.
        drop_last: whether an epoch's last global batch is left out where it is smaller than the others.
        gradient_accumulation_steps: micro-batches of a global batch on each rank.
        samples_consumed: the position; samples left out by `drop_last` count as consumed.
    """

    call: str
    dataset: Any
    global_batch_size: int
    rank: int
    size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    gradient_accumulation_steps: int = 1
    samples_consumed: int = 0

    def __post_init__(self) -> None:
        """Check what was asked for.

        Raises:
            DataError: the dataset is not a map-style one, or has no full batch with `drop_last`.
            SpecError: a number is not above 0, or the global batch cannot be cut evenly.
        """
        if isinstance(self.dataset, Mapping):
            raise DataError(
                f"{self.call}: dataset: a mapping has no samples by index; give a map-style dataset, with "
                "len(dataset) and dataset[i]"
            )
        self.n_samples = length_of(self.dataset, f"{self.call}: dataset")
        steps, total = self.gradient_accumulation_steps, self.global_batch_size
        check_counts(self.call, {"global_batch_size": total, "gradient_accumulation_steps": steps})
        each = self.size * steps
        if total % each:
            down = total // each * each
            near = f"{down} and {down + each}" if down else str(each)
            raise SpecError(
                f"{self.call}: global_batch_size: {total} is not a multiple of {self.size} ranks x "
                f"gradient_accumulation_steps {steps} = {each}: the nearest numbers are {near}"
            )
        if self.drop_last and self.n_samples < total:
            raise DataError(
                f"{self.call}: drop_last leaves nothing: the dataset has {self.n_samples} samples, and a "
                f"global batch {total}"
            )
        self._accumulation = Accumulation(self.size, total // each, ((0, steps),))

    def __len__(self) -> int:
        """Micro-batches of an epoch on each rank."""
        full, rest = divmod(self.n_samples, self.global_batch_size)
        return (full + (rest > 0 and not self.drop_last)) * self.gradient_accumulation_steps

    @property
    def epoch(self) -> int:
        """Epochs that have been used up: the number, from 0, of the one that the next batch belongs to."""
        return self._place.epoch

    @property
    def within_epoch(self) -> bool:
        """Whether some of this epoch's batches have been used, and some not."""
        return self._place.offset > 0

    @property
    def order(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same."""
        return {"samples": self.n_samples, "seed": self.seed, "shuffle": self.shuffle}

    def state_dict(self) -> dict[str, int]:
        """The position: `{"samples_consumed": N}`, over all ranks, valid on any number of them."""
        return {_POSITION: self.samples_consumed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a position with the next iterator.

        Args:
            state_dict: of a loader with the same dataset and order, on any number of ranks.

        Raises:
            SpecError: it is something else.
        """
        found = state_dict.get(_POSITION) if isinstance(state_dict, Mapping) else None
        if not isinstance(found, int) or found < 0:
            raise SpecError(
                f"{self.call}.load_state_dict: expected {{{_POSITION!r}: N}}, as state_dict() gives (found "
                f"{state_dict!r})"
            )
        self.samples_consumed = self._without_rest(found)

    def rest_of_epoch(self) -> Iterator[Share]:
        """This rank's micro-batches from the position to the end of the epoch; nothing is counted yet."""
        place, steps, total = self._place, self.gradient_accumulation_steps, self.global_batch_size
        # All cost the same: as many samples as fit.
        costs = np.broadcast_to(np.int64(1), self.n_samples)
        start = self.samples_consumed
        for batch in global_batches(self.seed, costs, self._accumulation, start, shuffle=self.shuffle):
            if batch.epoch > place.epoch or (self.drop_last and len(batch.indices) < total):
                return
            shares = rank_share(batch.indices, self.rank, self.size, steps, total // self.size // steps)
            for share in shares[:-1]:
                yield Share(share, batch.epoch, start)
            start = self._without_rest(batch.samples_consumed)
            yield Share(shares[-1], batch.epoch, start)

    def check_no_share_is_empty(self) -> None:
        """Refuse sizes with which an epoch's last global batch leaves some micro-batch without samples.

        Raises:
            SpecError: saying what to do.
        """
        rest, steps = self.n_samples % self.global_batch_size, self.gradient_accumulation_steps
        before_last = self.global_batch_size // self.size // steps * (steps - 1)
        if rest and not self.drop_last and rest // self.size <= before_last:
            raise SpecError(
                f"{self.call}: the last global batch of an epoch has {rest} sample(s), too few for every "
                f"micro-batch of {self.size} ranks: set drop_last=True, or take another global_batch_size"
            )

    @property
    def _place(self) -> Position:
        return Position.after(self.samples_consumed, self.n_samples)

    def _without_rest(self, consumed: int) -> int:
        """A position, moved to the end of the epoch where `drop_last` leaves the rest out."""
        left = self.n_samples - consumed % self.n_samples
        return consumed + left if self.drop_last and left < self.global_batch_size else consumed


class Positioned:
    """A loader whose position is that of its dealer."""

    _dealer: Dealer

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0."""
        return self._dealer.epoch

    @property
    def order(self) -> dict[str, Any]:
        """What must be equal for a position to mean the same, JSON-ready."""
        return self._dealer.order

    def state_dict(self) -> dict[str, int]:
        """The position: `{"samples_consumed": N}`, over all ranks, valid on any number of them."""
        return self._dealer.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a position with the next iterator.

        Args:
            state_dict: of a loader with the same dataset, seed and `shuffle`, on any number of ranks.

        Raises:
            SpecError: it is something else.
        """
        self._dealer.load_state_dict(state_dict)


def read_samples(dataset: Any, indices: Sequence[int], key: tuple[int, ...] | None = None) -> list[Any]:
    """Read samples of a map-style dataset.

    Args:
        dataset: with `dataset[i]`, or `dataset.__getitems__(indices)` as well.
        indices: which.
        key: in a worker process: the global generators are seeded by it and each sample, or the first of
            those read at once, as in jobs. None: they are left alone.
    """
    together = getattr(dataset, "__getitems__", None)
    if callable(together) and len(indices):
        if key is not None:
            seed_generators(*key, indices[0])
        return list(together(list(indices)))
    found = []
    for index in indices:
        if key is not None:
            seed_generators(*key, index)
        found.append(dataset[index])
    return found
