"""Batches for users' own loops: those of jobs, from any position, on any number of ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data import epoch_order, train_windows
from hvdtrain.core.data.batches import Batch
from hvdtrain.core.dropin.dealing import Dealer, Share, read_samples
from hvdtrain.core.errors import DataError, HvdtrainError, SpecError
from hvdtrain.core.update.accumulation import Accumulation


class Numbered:
    """A job's samples, of which a batch is their numbers."""

    def __init__(self, count: int) -> None:
        self.costs = np.ones(count, np.int64)

    def __len__(self) -> int:
        return len(self.costs)

    def collate(self, indices: np.ndarray, epoch: int, rows: int) -> Batch:
        return Batch({}, indices, np.ones(len(indices)), 1.0, {"tokens": 0, "samples": len(indices)})


def dealers(n: int, total: int, size: int, steps: int = 1, **options: Any) -> list[Dealer]:
    given = {"seed": 5, "gradient_accumulation_steps": steps, **options}
    return [Dealer("loader", range(n), total, rank, size, **given) for rank in range(size)]


def take(dealer: Dealer, count: int) -> list[Share]:
    """So many micro-batches, over the ends of epochs, each counted when it is taken."""
    found: list[Share] = []
    while len(found) < count:
        for share in dealer.rest_of_epoch():
            dealer.samples_consumed = share.samples_consumed
            found.append(share)
            if len(found) == count:
                break
    return found


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_they_are_those_of_a_job(n: int, size: int, steps: int, per_device: int) -> None:
    accumulation = Accumulation(size, per_device, ((0, steps),))
    total = size * steps * per_device
    for dealer in dealers(n, total, size, steps):
        windows = train_windows(Numbered(n), seed=5, accumulation=accumulation, rank=dealer.rank)
        for window in islice(windows, 2 * len(dealer) // steps + 1):
            shares = take(dealer, steps)
            for share, batch in zip(shares, window.micro_batches, strict=True):
                assert share.indices.tolist() == batch.targets.tolist()
                assert share.epoch == window.epoch
            assert dealer.samples_consumed == window.samples_consumed


@given(
    st.integers(1, 60), st.integers(1, 4), st.integers(1, 4), st.integers(0, 20), st.booleans(), st.booleans()
)
def test_another_number_of_ranks_goes_on_where_one_was_stopped(
    n: int, before: int, after: int, batches: int, shuffle: bool, drop_last: bool
) -> None:
    options = {"shuffle": shuffle, "drop_last": drop_last and n >= 12}
    unbroken, stopped = (dealers(n, 12, before, **options) for _ in range(2))
    # What is made ahead and not used does not count.
    for each in (*unbroken, *stopped):
        take(each, batches)
        list(each.rest_of_epoch())
    (state,) = {tuple(each.state_dict().items()) for each in stopped}
    resumed = dealers(n, 12, after, **options)
    for each in resumed:
        each.load_state_dict(dict(state))
    for _ in range(3 * len(unbroken[0])):
        batch, expected = (
            np.concatenate([take(each, 1)[0].indices for each in group]) for group in (resumed, unbroken)
        )
        assert batch.tolist() == expected.tolist()


@given(st.integers(12, 60), st.integers(1, 3), st.booleans())
def test_an_epoch_has_each_sample_once(n: int, epoch: int, drop_last: bool) -> None:
    used: list[int] = []
    for each in dealers(n, 12, 3, drop_last=drop_last):
        each.load_state_dict({"samples_consumed": epoch * n})
        assert each.epoch == epoch
        shares = list(each.rest_of_epoch())
        assert len(shares) == len(each)
        used += [index for share in shares for index in share.indices]
    order = epoch_order(5, epoch, n)
    assert sorted(used) == sorted(order[: n // 12 * 12] if drop_last else order)


def test_micro_batches_count_when_their_global_batch_is_done() -> None:
    dealer = dealers(20, 8, 2, steps=2)[0]
    positions = []
    for _ in range(4):
        take_one = next(iter(dealer.rest_of_epoch()))
        positions.append(take_one.samples_consumed)
    # The second micro-batch has not been taken, so the first one comes again.
    assert positions == [0] * 4
    assert [share.samples_consumed for share in take(replace(dealer), 6)] == [0, 8, 8, 16, 16, 20]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"total": 10}, "10 is not a multiple of 4 ranks x .* 1 = 4: the nearest numbers are 8 and 12"),
        (
            {"total": 10, "steps": 3},
            "4 ranks x gradient_accumulation_steps 3 = 12: the nearest numbers are 12",
        ),
        ({"total": 0}, "global_batch_size: expected an integer above 0"),
        ({"total": 4, "steps": 1.5}, "gradient_accumulation_steps: expected an integer above 0"),
        ({"total": 40, "drop_last": True}, "drop_last leaves nothing: the dataset has 30 samples"),
    ],
)
def test_what_cannot_be_dealt_is_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(HvdtrainError, match=said):
        dealers(30, size=4, **options)


def test_what_is_no_map_style_dataset_is_told() -> None:
    for dataset in (iter(range(3)), {"x": [1, 2]}, 7):
        with pytest.raises(DataError, match="map-style"):
            Dealer("loader", dataset, 1, 0, 1)
    with pytest.raises(DataError, match="loader: dataset is empty"):
        Dealer("loader", [], 1, 0, 1)


@pytest.mark.parametrize("state", [{}, {"samples_consumed": -1}, {"samples_consumed": "3"}, 3])
def test_what_is_no_position_is_told(state: Any) -> None:
    with pytest.raises(SpecError, match=r"expected \{'samples_consumed': N\}"):
        dealers(30, 4, 1)[0].load_state_dict(state)


def test_an_epochs_end_without_samples_for_every_rank_is_told() -> None:
    for n, fits in ((24, True), (25, False), (26, False), (27, True)):
        for dealer in dealers(n, 12, 3):
            if fits:
                dealer.check_no_share_is_empty()
                assert all(len(share.indices) for share in dealer.rest_of_epoch())
            else:
                with pytest.raises(SpecError, match="set drop_last=True"):
                    dealer.check_no_share_is_empty()
    dealers(25, 12, 3, drop_last=True)[0].check_no_share_is_empty()
    # 6 samples of 3 ranks: 2 each, and micro-batches of 2.
    with pytest.raises(SpecError, match="every micro-batch of 3 ranks"):
        dealers(18, 12, 3, steps=2)[0].check_no_share_is_empty()


def test_samples_that_are_drawn_by_workers_depend_on_nothing_else() -> None:
    class Drawn:
        def __getitem__(self, index: int) -> float:
            return index + np.random.random()

    alone = [read_samples(Drawn(), [index], (1, 0, 2))[0] for index in (3, 7, 5)]
    assert read_samples(Drawn(), [3, 7, 5], (1, 0, 2)) == alone
    assert read_samples(Drawn(), [3, 7, 5], (1, 0, 3)) != alone
