"""`DataLoader` on real ranks: a job's batches, workers, and positions."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.nn import functional

import hvdtrain.torch as hvd
from hvdtrain.core.data import epoch_order
from hvdtrain.core.errors import SpecError
from tests.dropin.trial import FEATURES, assert_same, mlp, sgd, twins, wrap


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """Samples that say which they are, and what was drawn for them."""

    def __init__(self, count: int = 21) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = [random.random(), np.random.random(), float(torch.rand(()))]
        return {"index": index, "drawn": torch.tensor(drawn, dtype=torch.float64)}


def loader(count: int = 21, total: int = 8, **options: Any) -> Any:
    return hvd.DataLoader(Rows(count), total, seed=3, **options)


def indices(batch: Any) -> list[int]:
    return batch["index"].tolist()


def everyones(batch: Any) -> list[int]:
    """The global batch: ranks' parts, one behind the other."""
    return [i for each in hvd.allgather_object(indices(batch), name="everyones") for i in each]


def check_batches_are_global_batches_of_the_order() -> None:
    for workers in (0, 2):
        given = loader(num_workers=workers)
        assert len(given) == 3
        for epoch in range(2):
            assert given.epoch == epoch
            order, start = epoch_order(3, epoch, 21).tolist(), 0
            for batch in given:
                found = everyones(batch)
                assert found == order[start : start + 8]
                assert len(indices(batch)) == given.batch_samples
                start += len(found)
                # Workers are ahead.
                assert given.state_dict() == {"samples_consumed": 21 * epoch + start}
            assert start == 21


def check_a_loader_goes_on_in_the_middle_of_an_epoch() -> None:
    whole = [indices(batch) for given in [loader()] for _ in range(3) for batch in given]
    for workers, persistent in ((0, False), (1, True)):
        for stop in (2, 3, 5):
            first, second = (loader(num_workers=workers, persistent_workers=persistent) for _ in range(2))
            found = []
            while len(found) < stop:
                for batch in first:
                    found.append(indices(batch))
                    if len(found) == stop:
                        break
            second.load_state_dict(first.state_dict())
            # A loop that breaks and goes on with the same loader goes on likewise.
            for given in (first, second):
                rest = [indices(batch) for _ in range(given.epoch, 3) for batch in given]
                assert found + rest == whole, (workers, stop)


def check_what_workers_draw_depends_on_the_sample_alone() -> None:
    drawn: dict[int, list[float]] = {}
    for workers in (1, 2):
        torch.manual_seed(workers)
        before = torch.get_rng_state()
        for batch in loader(num_workers=workers):
            for index, row in zip(indices(batch), batch["drawn"].tolist(), strict=True):
                assert drawn.setdefault(index, row) == row
        # Dropout is drawn from this generator.
        assert torch.equal(torch.get_rng_state(), before)
    assert len({value for row in drawn.values() for value in row}) == 3 * len(drawn)


def check_micro_batches_of_a_global_batch() -> None:
    given = loader(gradient_accumulation_steps=2)
    assert len(given) == 6
    positions, found = [], []
    for i, batch in enumerate(given):
        found += everyones(batch) if i % 2 else []
        positions.append(given.state_dict()["samples_consumed"])
    assert positions == [0, 8, 8, 16, 16, 21]


def check_ragged_and_empty_shares_give_the_mean_over_samples() -> None:
    """21 samples in batches of 10: the last batch is one sample, and rank 1 has none."""
    draw = torch.Generator().manual_seed(4)
    x = torch.randn(21, FEATURES, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (21,), generator=draw)
    data = torch.utils.data.TensorDataset(x, y)
    model, twin = twins(mlp)
    optimizer, other = wrap(sgd(model.parameters()), model, average="samples"), sgd(twin.parameters())
    given, empty = hvd.DataLoader(data, 10, seed=3), 0
    for epoch in range(2):
        order = torch.from_numpy(epoch_order(3, epoch, 21))
        for (inputs, targets), rows in zip(given, order.split(10), strict=True):
            empty += not len(inputs)
            optimizer.zero_grad()
            optimizer.batch_samples = given.batch_samples
            functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            other.zero_grad()
            functional.cross_entropy(twin(x[rows]), y[rows]).backward()
            other.step()
    assert empty == (2 if hvd.rank() == 1 else 0)
    assert_same(model, twin, 1e-12)


def check_options_that_a_position_forbids_are_told() -> None:
    for option in ("batch_size", "sampler", "batch_sampler", "in_order"):
        try:
            loader(**{option: 1})
        except SpecError as error:
            assert option in str(error)
        else:
            raise AssertionError(option)
