"""The order of samples: every sample once an epoch, whatever the ranks; resumable at any sample."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data.order import GlobalBatch, Position, epoch_order, rank_share
from hvdtrain.core.data.order import global_batches as batches_of
from hvdtrain.core.update.accumulation import Accumulation


def global_batches(seed: int, n: int, batch_size: int, start_samples: int = 0) -> Iterator[GlobalBatch]:
    return batches_of(seed, np.ones(n, np.int64), Accumulation(1, batch_size), start_samples)


def test_order_is_the_one_of_the_first_release() -> None:
    assert epoch_order(7, 3, 10).tolist() == [2, 3, 0, 9, 1, 6, 7, 4, 5, 8]


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(
    n=st.integers(1, 200),
    size=st.integers(1, 9),
    accumulation=st.integers(1, 5),
    per_device=st.integers(1, 7),
    epochs=st.integers(1, 3),
)
def test_every_sample_comes_once_an_epoch(
    n: int, size: int, accumulation: int, per_device: int, epochs: int
) -> None:
    global_batch = size * accumulation * per_device
    seen: dict[int, list[int]] = {}
    for batch in islice(global_batches(0, n, global_batch), epochs * -(-n // global_batch)):
        shares = [rank_share(batch.indices, r, size, accumulation, per_device) for r in range(size)]
        assert all(len(share) == accumulation for share in shares)
        assert all(len(micro) <= per_device for share in shares for micro in share)
        together = np.concatenate([micro for share in shares for micro in share])
        np.testing.assert_array_equal(together, batch.indices)
        seen.setdefault(batch.epoch, []).extend(together.tolist())
        assert batch.samples_consumed == batch.epoch * n + len(seen[batch.epoch])
    assert sorted(seen) == list(range(epochs))
    assert all(sorted(samples) == list(range(n)) for samples in seen.values())


@given(
    n=st.integers(1, 100),
    batch_size=st.integers(1, 40),
    updates=st.integers(0, 12),
    more=st.integers(1, 6),
)
def test_resumed_run_goes_on_where_it_stopped(n: int, batch_size: int, updates: int, more: int) -> None:
    whole = list(islice(global_batches(3, n, batch_size), updates + more))
    consumed = whole[updates - 1].samples_consumed if updates else 0
    resumed = list(islice(global_batches(3, n, batch_size, consumed), more))
    assert [(b.epoch, b.indices.tolist(), b.samples_consumed) for b in resumed] == [
        (b.epoch, b.indices.tolist(), b.samples_consumed) for b in whole[updates:]
    ]


@given(n=st.integers(1, 100), first=st.integers(1, 40), second=st.integers(1, 40), updates=st.integers(1, 6))
def test_another_batch_size_takes_the_samples_that_were_left(
    n: int, first: int, second: int, updates: int
) -> None:
    before = list(islice(global_batches(1, n, first), updates))
    consumed = before[-1].samples_consumed
    epoch = Position.after(consumed, n).epoch
    used = [s for b in before if b.epoch == epoch for s in b.indices.tolist()]
    for batch in global_batches(1, n, second, consumed):
        if batch.epoch != epoch:
            break
        used += batch.indices.tolist()
    assert sorted(used) == list(range(n))


def test_full_batches_fill_every_micro_batch() -> None:
    shares = [rank_share(np.arange(24), rank, 3, 2, 4) for rank in range(3)]
    assert [[micro.tolist() for micro in share] for share in shares] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[8, 9, 10, 11], [12, 13, 14, 15]],
        [[16, 17, 18, 19], [20, 21, 22, 23]],
    ]


def test_ragged_batch_spreads_evenly_over_the_ranks() -> None:
    shares = [rank_share(np.arange(7), rank, 3, 2, 2) for rank in range(3)]
    assert [[micro.tolist() for micro in share] for share in shares] == [
        [[0, 1], [2]],
        [[3, 4], []],
        [[5, 6], []],
    ]


def test_batch_too_large_for_its_micro_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="13 samples does not fit 3 ranks x 2 micro-batches x 2 rows = 12"):
        rank_share(np.arange(13), 0, 3, 2, 2)


def test_position() -> None:
    assert Position.after(0, 10) == Position(0, 0)
    assert Position.after(10, 10) == Position(1, 0)
    assert Position.after(27, 10) == Position(2, 7)
