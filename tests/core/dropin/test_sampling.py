"""A rank's samples: together each once, and batch by batch the order's global batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data import epoch_order
from hvdtrain.core.dropin import share_length, share_of_epoch


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_batches_of_all_ranks_are_the_orders_global_batches(
    n: int, size: int, batch: int, shuffle: bool
) -> None:
    order = epoch_order(5, 2, n) if shuffle else np.arange(n)
    shares = [share_of_epoch(5, 2, n, rank, size, shuffle) for rank in range(size)]
    assert [len(s) for s in shares] == [share_length(n, rank, size) for rank in range(size)]
    for i in range(0, n, batch * size):
        start = i // size
        together = np.concatenate([s[start : start + batch] for s in shares])
        assert sorted(together) == sorted(order[i : i + batch * size])


@pytest.mark.parametrize(("n", "size"), [(10, 3), (9, 3), (2, 3)])
def test_dropping_the_last_makes_counts_equal(n: int, size: int) -> None:
    shares = [share_of_epoch(0, 0, n, rank, size, drop_last=True) for rank in range(size)]
    assert {len(s) for s in shares} == {n // size} == {share_length(n, 0, size, drop_last=True)}
    assert len(set(np.concatenate(shares))) == n // size * size
