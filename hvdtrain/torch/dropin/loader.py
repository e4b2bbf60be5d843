"""Batches for a loop of the user's own, with a position that is valid on any number of ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import horovod.torch as hvd
import torch
from torch.utils import data

from hvdtrain.core.dropin.dealing import Dealer, Positioned, Share, read_samples
from hvdtrain.core.errors import SpecError
from hvdtrain.torch.dropin.session import require_init
from hvdtrain.torch.dropin.state import swap

_INSTEAD = {
    "batch_size": "give global_batch_size, the samples of one batch over all ranks",
    "sampler": "the order is a function of seed; give shuffle=False for that of the dataset",
    "batch_sampler": "the order is a function of seed; give shuffle=False for that of the dataset",
    "in_order": "the position needs batches in their order",
}


class DataLoader(Positioned):
    """In place of `torch.utils.data.DataLoader`: global batches, shared out over ranks, with a position.

    Iterating gives the rest of the current epoch, so a loop over epochs goes on in the middle of one after
    `load_state_dict`. Global batches are those of a job with this seed, on any number of ranks. A batch
    counts as consumed when the loop gets it, and not when a worker prepares it. All ranks get equally many
    batches. An epoch's last global batch may be smaller, then ranks' parts differ by at most one sample, and
    some may have none: weight by samples, with `DistributedOptimizer(average="samples")` and
    `optimizer.batch_samples = loader.batch_samples`, and the mean is over the samples of all ranks.

    Attributes:
        dataset: that was given.
        batch_samples: this rank's samples in the batch that it got last.
    """

    def __init__(
        self,
        dataset: Any,
        global_batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        gradient_accumulation_steps: int = 1,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        **options: Any,
    ) -> None:
        """Choose the batches; every rank gives the same arguments.

        Args:
            dataset: map-style, with `len(dataset)` and `dataset[i]`.
            global_batch_size: samples of a global batch, over all ranks and micro-batches.
            seed: of the order, as a job's.
            shuffle: whether the order is random, in every epoch another.
            drop_last: whether to leave out an epoch's last global batch where it is smaller.
            gradient_accumulation_steps: micro-batches in which each rank gets its part of a global batch; the
                position counts whole global batches.
            collate_fn: makes a list of samples a batch; PyTorch's `default_collate` by default.
            num_workers: processes that draw samples ahead. Each seeds the global generators of Python, NumPy
                and PyTorch by seed, epoch and sample, so the number of workers and ranks changes nothing.
            **options: of `torch.utils.data.DataLoader`, such as `pin_memory` or `persistent_workers`.

        Raises:
            DataError: the dataset is not a map-style one.
            SpecError: the global batch cannot be cut evenly; the message has the nearest numbers.
            TrainingError: `init()` was not called.
        """
        require_init("DataLoader")
        for name in _INSTEAD.keys() & options.keys():
            raise SpecError(f"DataLoader: {name}: {_INSTEAD[name]}")
        self.dataset, self.batch_samples = dataset, 0
        self._dealer = Dealer(
            "DataLoader",
            dataset,
            global_batch_size,
            hvd.rank(),
            hvd.size(),
            seed,
            shuffle,
            drop_last,
            gradient_accumulation_steps,
        )
        self._sampler = _Shares(self._dealer)
        self._loader = data.DataLoader(
            _Samples(dataset, seed),
            batch_sampler=self._sampler,
            collate_fn=_Collate(dataset, collate_fn or data.default_collate),
            num_workers=num_workers,
            # Else each iterator would draw from the generator that dropout draws from.
            generator=torch.Generator(),
            **options,
        )

    def __iter__(self) -> Iterator[Any]:
        """The batches from the position to the end of the epoch."""
        batches = iter(self._loader)
        ahead = self._sampler.ahead
        for batch in batches:
            share = ahead.popleft()
            self._dealer.samples_consumed, self.batch_samples = share.samples_consumed, len(share.indices)
            yield batch

    def __len__(self) -> int:
        """Batches of a whole epoch on each rank."""
        return len(self._dealer)


class _Shares:
    """What PyTorch's loader asks for the samples of each batch, ahead of the loop.

    Attributes:
        ahead: what the last iterator has given and the loop has not got yet.
    """

    def __init__(self, dealer: Dealer) -> None:
        self._dealer = dealer
        self.ahead: deque[Share] = deque()

    def __iter__(self) -> Iterator[Share]:
        self.ahead = deque()
        return self._noted(self.ahead)

    def __len__(self) -> int:
        return len(self._dealer)

    def _noted(self, ahead: deque[Share]) -> Iterator[Share]:
        for share in self._dealer.rest_of_epoch():
            ahead.append(share)
            yield share


class _Samples(data.Dataset):  # type: ignore[misc]
    """A dataset that is read by shares."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self._dataset, self._seed = dataset, seed

    def __getitems__(self, share: Share) -> list[Any]:
        # 0: of a job's datasets, the one it trains on.
        key = (self._seed, 0, share.epoch) if data.get_worker_info() is not None else None
        return read_samples(self._dataset, share.indices.tolist(), key)


class _Collate:
    """Makes samples a batch, also where there are none: that has the shape of a batch of sample 0."""

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._dataset, self._collate_fn = dataset, collate_fn

    def __call__(self, samples: Sequence[Any]) -> Any:
        if samples:
            return self._collate_fn(list(samples))
        return swap(self._collate_fn([self._dataset[0]]), torch.is_tensor, lambda tensor: tensor[:0])
