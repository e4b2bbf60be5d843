"""The PyTorch competitors: each function joins its ranks and returns one rank's step."""

from __future__ import annotations

import os
from collections.abc import Callable

import horovod.torch as hvd
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import hvdtrain.torch as dropin
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.torch import world
from hvdtrain.torch.model import Model, tensors
from hvdtrain.torch.trainer import build_trainer
from hvdtrain.torch.weights import Parameters
from side_by_side.competitors import RANKS
from side_by_side.work import Work, make_work

# Takes the number of the update from 0; returns this rank's share of the mean loss, or the mean loss itself.
Step = Callable[[int], float]
Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def hvdtrain(spec: JobSpec) -> tuple[int, Step]:
    """This project's `Trainer.update`."""
    ranks = world.init(spec)
    work = make_work(spec, ranks.rank)
    trainer = build_trainer(spec, work.plan, work.weights)
    trainer.model.write(work.initial())

    def step(number: int) -> float:
        window, divisor = work.window(number)
        result = trainer.update(
            window, divisor, work.window(number + 1)[0].weight, work.plan.learning_rate, number + 1, 1.0
        )
        return result.loss_sum / divisor / RANKS

    return ranks.rank, step


def wrapper(spec: JobSpec) -> tuple[int, Step]:
    """This project's `DistributedOptimizer`, clipping as in a loop of one process."""
    dropin.init()
    torch.set_num_threads(1)
    work, model = _build(spec, hvd.rank())
    dropin.broadcast_parameters(model.parameters, root_rank=0)
    optimizer = dropin.DistributedOptimizer(
        _adamw(work, model.parameters), model.parameters.items(), average="sum"
    )

    def step(number: int) -> float:
        batch, divisor = work.batch(number)
        optimizer.zero_grad()
        loss = model.loss_sum(tensors(batch), training=True) / divisor
        loss.backward()
        _clip(spec, model.parameters)
        optimizer.step()
        return loss.item()

    return hvd.rank(), step


def stock(spec: JobSpec) -> tuple[int, Step]:
    """Horovod's `DistributedOptimizer`, as its documentation shows it with gradient clipping."""
    hvd.init()
    torch.set_num_threads(1)
    work, model = _build(spec, hvd.rank())
    hvd.broadcast_parameters(model.parameters, root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        _adamw(work, model.parameters), named_parameters=model.parameters.items(), op=hvd.Sum
    )

    def step(number: int) -> float:
        batch, divisor = work.batch(number)
        optimizer.zero_grad()  # to None: its own signature takes no arguments
        loss = model.loss_sum(tensors(batch), training=True) / divisor
        loss.backward()
        optimizer.synchronize()
        _clip(spec, model.parameters)
        with optimizer.skip_synchronize():
            optimizer.step()
        return loss.item()

    return hvd.rank(), step


def ddp(spec: JobSpec) -> tuple[int, Step]:
    """`DistributedDataParallel` over Gloo, gradients as views into its buckets."""
    rank = _join_gloo()
    work, model = _build(spec, rank)
    wrapped = nn.parallel.DistributedDataParallel(_Root(model), gradient_as_bucket_view=True)
    # DDP averages gradients over ranks, while W counts all of them.
    return rank, _plain_step(work, model.parameters, wrapped, gradient_scale=RANKS)


def fsdp(spec: JobSpec) -> tuple[int, Step]:
    """FSDP2 over Gloo: each layer, and the rest, by `fully_shard`."""
    rank = _join_gloo()
    work, model = _build(spec, rank)
    root, mesh = _Root(model), distributed.init_device_mesh("cpu", (RANKS,))
    for name, module in root.named_modules():
        if name.rpartition(".")[2].isdigit():
            fully_shard(module, mesh=mesh)
    fully_shard(root, mesh=mesh)
    parameters = {name.removeprefix("module."): p for name, p in root.named_parameters()}
    # FSDP averages gradients over ranks, while W counts all of them.
    return rank, _plain_step(work, parameters, root, gradient_scale=RANKS)


def alone(spec: JobSpec) -> tuple[int, Step]:
    """Plain PyTorch in one process."""
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    work, model = _build(spec, rank)
    return rank, _plain_step(work, model.parameters, lambda batch: model.loss_sum(batch, training=True))


class _Root(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self._model, self.module = model, model.network.module

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._model.loss_sum(batch, training=True)


def _join_gloo() -> int:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{os.environ['MEETING_FILE']}", rank=rank, world_size=RANKS
    )
    return rank


def _build(spec: JobSpec, rank: int) -> tuple[Work, Model]:
    work = make_work(spec, rank)
    model = Model(spec.model, work.weights)
    model.write(work.initial())
    return work, model


def _plain_step(work: Work, parameters: Parameters, loss_sum: Forward, gradient_scale: int = 1) -> Step:
    optimizer = _adamw(work, parameters)

    def step(number: int) -> float:
        batch, divisor = work.batch(number)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_sum(tensors(batch)) * (gradient_scale / divisor)
        loss.backward()
        _clip(work.spec, parameters)
        optimizer.step()
        return loss.item() / gradient_scale

    return step


def _adamw(work: Work, parameters: Parameters) -> torch.optim.Optimizer:
    asked = work.spec.optimizer
    decayed = [parameters[w.name] for w in work.weights if w.decays]
    plain = [parameters[w.name] for w in work.weights if not w.decays]
    return torch.optim.AdamW(
        [{"params": decayed}, {"params": plain, "weight_decay": 0.0}],
        lr=work.plan.learning_rate,
        betas=(asked.adam_beta1, asked.adam_beta2),
        eps=asked.adam_epsilon,
        weight_decay=asked.weight_decay,
        fused=True,
    )


def _clip(spec: JobSpec, parameters: Parameters) -> None:
    if spec.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(parameters.values(), spec.max_grad_norm)
