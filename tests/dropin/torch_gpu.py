"""Models on GPUs, by ranks and by one process. Run on 2 ranks."""

from __future__ import annotations

from typing import Any

import torch

import hvdtrain.torch as hvd
from hvdtrain.torch.weights import host_copy
from tests.dropin.trial import Trial, mean_loss, mlp, own, same_on_all_ranks, sgd, wrap


def gpu_mlp(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    return mlp(dtype).cuda()


def gpu_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return mean_loss(model, x.cuda(), y.cuda())


def trial(wrapper: dict[str, Any], **arguments: Any) -> Trial:
    return Trial(wrapper, model=gpu_mlp, loss=gpu_loss, **arguments)


def check_ranks_train_as_one_process() -> None:
    trial({}).check()
    trial({"gradient_accumulation_steps": 2}, rows=((2, 3), (1, 2))).check()
    trial({"average": "samples"}, rows=((3,), (1,)), average="samples").check()


def check_compressed_ranks_stay_together() -> None:
    for compression in ("fp16", "bf16", "int8", "sign", "topk", "randomk", "powersgd"):
        model = trial({"compression": compression, "gradient_accumulation_steps": 2}, rows=((2, 2), (2, 2)))
        same_on_all_ranks(model.together())


def check_a_scaler_skips_every_ranks_update() -> None:
    model = gpu_mlp(torch.float32)
    optimizer = wrap(sgd(model.parameters()), model)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    before = [p.detach().clone() for p in model.parameters()]
    loss = own(model, 0, loss=gpu_loss)
    scaler.scale(loss * (float("inf") if hvd.rank() == 1 else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    optimizer.zero_grad()
    scaler.scale(own(model, 1, loss=gpu_loss)).backward()
    scaler.step(optimizer)
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    same_on_all_ranks(model)


def check_copies_in_host_memory_are_pinned() -> None:
    there = torch.arange(6.0, device="cuda").reshape(2, 3).T
    found = host_copy(there)
    assert found.is_pinned()
    assert found.is_contiguous()
    assert torch.equal(found, there.cpu())
