"""The share of a dataset that a rank sees, in the order that jobs have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import horovod.torch as hvd
from torch.utils.data import Sampler

from hvdtrain.core.dropin import share_length, share_of_epoch
from hvdtrain.torch.dropin.session import require_init


class DistributedSampler(Sampler):  # type: ignore[misc]
    """In place of `torch.utils.data.DistributedSampler`: no sample is repeated or dropped.

    The ranks' batches number i are together the order's global batch i, so an epoch is the same on any number
    of ranks. Its last batches may be smaller, and some ranks may have none: weight by samples, see
    `DistributedOptimizer`'s `average="samples"`, and call `hvdtrain.torch.join()` after the epoch.
    """

    def __init__(
        self,
        dataset: Any,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Arguments as PyTorch's, in its order.

        Args:
            dataset: anything with a length.
            num_replicas: ranks; Horovod's by default.
            rank: this rank; Horovod's by default.
            shuffle: whether the order is random, a function of seed and epoch.
            seed: of the order.
            drop_last: whether to leave out the last samples that make ranks' counts differ.
        """
        if num_replicas is None or rank is None:
            require_init("DistributedSampler")
        self.dataset, self.shuffle, self.seed, self.drop_last = dataset, shuffle, seed, drop_last
        self.num_replicas = hvd.size() if num_replicas is None else num_replicas
        self.rank = hvd.rank() if rank is None else rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next; call it before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        share = share_of_epoch(
            self.seed,
            self.epoch,
            len(self.dataset),
            self.rank,
            self.num_replicas,
            self.shuffle,
            self.drop_last,
        )
        return iter(share.tolist())

    def __len__(self) -> int:
        return share_length(len(self.dataset), self.rank, self.num_replicas, self.drop_last)
