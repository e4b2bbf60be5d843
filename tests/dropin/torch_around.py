"""What stands around the loop: broadcasts, metrics, the sampler, ranks with a batch less. Run on 2 ranks."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from inspect import ismodule
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import hvdtrain.torch as hvd
from hvdtrain.core.data import epoch_order
from tests.dropin.torch_misuse import told
from tests.dropin.trial import (
    assert_same,
    batch,
    every,
    mean_loss,
    mlp,
    own,
    same_on_all_ranks,
    sgd,
    twins,
    wrap,
)

OURS = {"metric_average", "DistributedSampler", "DataLoader", "Checkpoint", "elastic"}


def check_horovods_names() -> None:
    assert hvd.is_initialized()
    assert (hvd.size(), hvd.local_size(), hvd.cross_size()) == (2, 2, 1)
    assert hvd.rank() == hvd.local_rank() in (0, 1)
    assert hvd.cross_rank() == 0
    ones = torch.ones(3) * (1 + hvd.rank())
    assert hvd.allreduce(ones).tolist() == [1.5] * 3
    assert hvd.allreduce(ones, op=hvd.Sum).tolist() == [3.0] * 3
    assert hvd.synchronize(hvd.allreduce_async_(ones.clone(), op=hvd.Sum)).tolist() == [3.0] * 3
    assert hvd.allgather(ones[: 1 + hvd.rank()]).tolist() == [1.0, 2.0, 2.0]
    assert hvd.broadcast(ones, root_rank=1).tolist() == [2.0] * 3
    assert hvd.broadcast_object({"epoch": 3 + hvd.rank()}, root_rank=0) == {"epoch": 3}
    assert hvd.allgather_object(hvd.rank()) == [0, 1]
    assert isinstance(hvd.mpi_built() and hvd.gloo_built() and not hvd.nccl_built(), bool)
    import horovod.torch

    # Submodules that Horovod happens to have imported aside.
    public = {n for n, v in vars(horovod.torch).items() if not n.startswith("_") and not ismodule(v)}
    assert public | OURS == set(dir(hvd))
    for name in public:
        getattr(hvd, name)
    try:
        hvd.all_reduce  # noqa: B018
    except AttributeError as error:
        assert "all_reduce" in str(error)
    else:
        raise AssertionError("no error")


def check_broadcast_parameters() -> None:
    torch.manual_seed(hvd.rank())
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    module.register_buffer("narrow", torch.randn(3).bfloat16())
    module.register_buffer("flags", torch.rand(5) > 0.5)
    module.register_buffer("strided", torch.randn(4, 6)[:, ::2])
    module.register_buffer("nothing", torch.zeros(0))
    module(torch.randn(2, 3, 5, 5))
    for form in (module.state_dict(), module.named_parameters(), [*module.parameters()]):
        hvd.broadcast_parameters(form, root_rank=1)
    for name, tensor in module.state_dict().items():
        every = hvd.allgather(tensor.double()[None].contiguous(), name=name)
        assert torch.equal(every[0], every[1]), name
    torch.manual_seed(1)
    assert torch.equal(module[0].weight, torch.nn.Conv2d(3, 4, 2).weight)


def check_broadcast_optimizer_state() -> None:
    makers = (
        lambda p: torch.optim.Adam(p, lr=0.01 * (1 + hvd.rank()), amsgrad=True),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
        lambda p: torch.optim.SGD(p, lr=0.1 * (1 + hvd.rank()), momentum=0.9),
    )
    for make in makers:
        model = mlp()
        optimizer = make(model.parameters())
        if hvd.rank() == 0:
            for update in range(2):
                optimizer.step(closure(model, optimizer, update))
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters())
        twin = copy.deepcopy(model)
        other = make(twin.parameters())
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))

        optimizer.step(closure(model, optimizer, 5))
        other.step(closure(twin, other, 5))
        # Equal losses on every rank: the wrapped update is the plain one.
        assert_same(model, twin, 1e-12)
        same_on_all_ranks(model)


def closure(model: torch.nn.Module, optimizer: Any, update: int) -> Callable[[], torch.Tensor]:
    def of_the_same_data() -> torch.Tensor:
        optimizer.zero_grad()
        loss = mean_loss(model, *batch((update, 0, 0), 4, torch.float64))
        loss.backward()
        return loss

    return of_the_same_data


def check_metric_average() -> None:
    values = [torch.arange(3.0).double(), torch.arange(5.0).double() + 10]
    mine = values[hvd.rank()]
    whole = torch.cat(values)
    assert math.isclose(hvd.metric_average(mine.mean().item(), len(mine)), whole.mean().item(), rel_tol=1e-15)
    found = hvd.metric_average({"a": mine.mean(), "b": (mine**2).mean()}, len(mine))
    assert math.isclose(found["b"], (whole**2).mean().item(), rel_tol=1e-15)
    empty = [4.0, float("nan")][hvd.rank()]
    assert hvd.metric_average(empty, [2, 0][hvd.rank()]) == 4.0
    assert math.isnan(hvd.metric_average(1.0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = (torch.ones(2, requires_grad=True) * 3).mean()
        assert hvd.metric_average(loss, 2) == hvd.metric_average({"a": loss}, 2)["a"] == 3.0


def check_sampler_is_a_drop_in() -> None:
    dataset = list(range(11))
    sampler = hvd.DistributedSampler(dataset, seed=3)
    shares = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        assert len([*sampler]) == len(sampler)
        shares.append([i for share in hvd.allgather_object([*sampler]) for i in share])
        assert sorted(shares[-1]) == dataset
        assert np.array_equal([*sampler], epoch_order(3, epoch, 11)[hvd.rank() :: 2])
    assert shares[0] != shares[1]
    assert [*hvd.DistributedSampler(dataset, num_replicas=3, rank=1, shuffle=False)] == [1, 4, 7, 10]
    assert len(hvd.DistributedSampler(dataset, drop_last=True)) == 5


def check_join_is_refused_where_zeros_do_not_stand_for_a_rank() -> None:
    for compression in ("int8", "sign", "topk", "randomk", "powersgd", "adasum"):
        model = mlp(torch.float32)
        optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1), model, compression=compression)
        own(model, 0).backward()
        optimizer.step()
        told((f"compression {compression}", "join", "drop_last=True", "fp16"), hvd.join)
        # Nobody has left: the next update is one of all ranks.
        optimizer.zero_grad()
        own(model, 1).backward()
        optimizer.step()
        same_on_all_ranks(model)
        # Another optimizer takes the model over, and this one no longer counts.
        other = wrap(torch.optim.SGD(model.parameters(), lr=0.1), model)
        hvd.join()
        del other
    model = mlp(torch.float32)
    optimizer = wrap(sgd(model.parameters()), model, compression="fp16")
    told(("compression fp16", "update 1"), hvd.join)
    del optimizer


def check_compression_knows_after_join_what_ranks_have_missed() -> None:
    """The larger gradients of updates without rank 1 decide of the 16 bits' scale, on every rank alike."""
    bf16 = {"type": "bf16", "use_error_feedback": False}
    for compression in ("fp16", [{"match": "0.*", "type": "fp16"}, bf16]):
        model, twin = twins(lambda: mlp(torch.float32))
        plain = torch.optim.SGD(model.parameters(), lr=1e-3)
        optimizer = wrap(plain, model, compression=compression, average="samples")
        for epoch in range(3):
            for update in range(4 if hvd.rank() == 0 else 1):
                optimizer.batch_samples = 2
                optimizer.zero_grad()
                (own(model, 10 * epoch + update) * 4.0**update).backward()
                optimizer.step()
            hvd.join()
            hvd.broadcast_parameters(model.state_dict(), root_rank=0)
            hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        twin.load_state_dict(model.state_dict())
        optimizer.batch_samples = 2
        optimizer.zero_grad()
        own(model, 99).backward()
        every(twin, 99).backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            largest = float(b.grad.abs().max())
            torch.testing.assert_close(a.grad, b.grad, rtol=0.02, atol=0.02 * largest)
        optimizer.step()
        same_on_all_ranks(model)


def check_epochs_with_a_rank_that_has_a_batch_less() -> None:
    """17 samples, 2 ranks, batches of 4: in the third update rank 1 has none, and joins."""
    x, y = batch((1, 2, 3), 17, torch.float64)
    model, twin = twins()
    sampler = hvd.DistributedSampler(x, seed=7)
    loader = DataLoader(TensorDataset(x, y), batch_size=4, sampler=sampler)
    assert len(loader) == 3 - hvd.rank()
    optimizer = hvd.DistributedOptimizer(sgd(model.parameters()), model.named_parameters(), average="samples")
    other = sgd(twin.parameters())
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for inputs, targets in loader:
            optimizer.batch_samples = len(inputs)
            optimizer.zero_grad()
            mean_loss(model, inputs, targets).backward()
            optimizer.step()
        hvd.join()
        # The rank that had less has missed an update of the weights, which it takes over.
        hvd.broadcast_parameters(model.state_dict(), root_rank=0)
        hvd.broadcast_optimizer_state(optimizer, root_rank=0)
        order = torch.from_numpy(epoch_order(7, epoch, 17))
        for part in order.split(8):
            other.zero_grad()
            functional.cross_entropy(twin(x[part]), y[part]).backward()
            other.step()
    assert_same(model, twin, 1e-12)
