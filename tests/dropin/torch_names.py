"""What Horovod has beside its optimizer: batch normalisation, elastic state, groups of ranks. On 2 ranks."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch.nn import functional

import hvdtrain.torch as hvd
from hvdtrain.core.errors import TrainingError
from tests.dropin.trial import assert_same, batch, mlp, same_on_all_ranks, sgd

CHANNELS = 4


def layers(norm: type[torch.nn.Module], track: bool = True, momentum: float | None = 0.3) -> torch.nn.Module:
    torch.manual_seed(5)
    first, last = torch.nn.Conv2d(2, CHANNELS, 2), torch.nn.Linear(CHANNELS * 4, 3)
    middle = norm(CHANNELS, momentum=momentum, track_running_stats=track)
    return torch.nn.Sequential(first, middle, torch.nn.ReLU(), torch.nn.Flatten(), last).double()


def images(update: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(update)
    # Far from zero: squares would cancel.
    pictures = 1e3 + torch.randn(rows, 2, 3, 3, generator=draw, dtype=torch.float64)
    return pictures, torch.randint(3, (rows,), generator=draw)


def check_sync_batch_norm_is_that_of_one_process() -> None:
    # The last update leaves rank 1 without a row.
    for rows in ((3, 3), (5, 2), (4, 0)):
        for track, momentum in ((True, 0.3), (True, None), (False, 0.3)):
            ours, alone = (
                layers(hvd.SyncBatchNorm, track, momentum),
                layers(torch.nn.BatchNorm2d, track, momentum),
            )
            optimizer = hvd.DistributedOptimizer(
                sgd(ours.parameters()), ours.named_parameters(), average="sum"
            )
            other = sgd(alone.parameters())
            for update in range(3):
                x, y = images(update, sum(rows))
                share = slice(0, rows[0]) if hvd.rank() == 0 else slice(rows[0], None)
                optimizer.zero_grad()
                own = functional.cross_entropy(ours(x[share]), y[share], reduction="sum") / len(x)
                own.backward()
                optimizer.step()
                other.zero_grad()
                functional.cross_entropy(alone(x), y).backward()
                other.step()
            assert_same(ours, alone, 1e-9)
            for name, value in alone.named_buffers():
                assert torch.allclose(ours.get_buffer(name), value, rtol=1e-9), name
            x, _ = images(9, 4)
            assert torch.allclose(ours.eval()(x), alone.eval()(x), rtol=1e-8)
            same_on_all_ranks(ours)


def check_sync_batch_norm_in_half_precision_and_without_weights() -> None:
    layer = hvd.SyncBatchNorm(CHANNELS, affine=False)
    x = torch.randn(6, CHANNELS, generator=torch.Generator().manual_seed(1))
    half = x[hvd.rank() :: 2].bfloat16().requires_grad_()
    out = layer(half)
    assert out.dtype == torch.bfloat16
    expected = functional.batch_norm(x.bfloat16().float(), None, None, training=True)
    assert torch.allclose(out.float(), expected[hvd.rank() :: 2], atol=0.02)
    (out.float() ** 3).sum().backward()
    assert half.grad is not None and torch.isfinite(half.grad).all()
    with pytest.raises(ValueError, match="at least 2D"):
        layer(torch.zeros(3))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.zeros(1 - hvd.rank(), CHANNELS))


def check_elastic_state_in_a_job_whose_ranks_stay() -> None:
    model = mlp()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.1), model.named_parameters()
    )
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, epoch=hvd.rank())
    began = copy.deepcopy(model.state_dict())

    @hvd.elastic.run
    def train(state: hvd.elastic.TorchState) -> int:
        for step in range(2):
            x, y = batch((step, hvd.rank()), 4, torch.float64)
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if step == 0:
                state.commit()
                middle = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        state.restore()
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), middle[0].values(), strict=True)
        )
        assert optimizer.state_dict()["state"][0]["step"] == middle[1]["state"][0]["step"] == 1
        return state.epoch

    assert train(state) == 0
    assert not torch.equal(model.state_dict()["0.weight"], began["0.weight"])
    same_on_all_ranks(model)
    os.environ["HOROVOD_ELASTIC"] = "1"
    try:
        with pytest.raises(TrainingError, match="ranks come and go"):
            hvd.elastic.TorchState(model=model, optimizer=optimizer)
    finally:
        del os.environ["HOROVOD_ELASTIC"]
