"""Which samples of a user's dataset are a rank's, in the order of data that jobs have."""

from __future__ import annotations

import numpy as np

from hvdtrain.core.data.order import Indices, epoch_order


def share_of_epoch(
    seed: int, epoch: int, n_samples: int, rank: int, size: int, shuffle: bool = True, drop_last: bool = False
) -> Indices:
    """A rank's samples of one epoch: every size-th of the epoch's order.

    So the ranks' batches number i are together the order's samples i·B … (i + 1)·B - 1, B the global batch.
    Over all ranks every sample comes exactly once; counts differ by at most one.

    Args:
        seed: of the order.
        epoch: from 0.
        n_samples: of the dataset.
        rank: this rank, from 0.
        size: number of ranks.
        shuffle: whether the order is random, else that of the dataset.
        drop_last: whether the last samples are left out that would make counts differ.

    Returns:
        int64 indices, `share_length` of them.
    """
    order = epoch_order(seed, epoch, n_samples) if shuffle else np.arange(n_samples)
    return order[rank::size][: share_length(n_samples, rank, size, drop_last)]


def share_length(n_samples: int, rank: int, size: int, drop_last: bool = False) -> int:
    """How many samples of an epoch are a rank's; arguments as `share_of_epoch`."""
    return n_samples // size + (not drop_last and rank < n_samples % size)
