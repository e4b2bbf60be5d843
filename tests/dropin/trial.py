"""One model trained twice: by ranks with the wrapper, and by this process alone on all ranks' data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

import hvdtrain.torch as hvd

FEATURES, CLASSES = 6, 3
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def mlp(dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    torch.manual_seed(1)
    layers = torch.nn.Linear(FEATURES, 8), torch.nn.Tanh(), torch.nn.Linear(8, CLASSES)
    return torch.nn.Sequential(*layers).to(dtype)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1)


def batch(key: Sequence[int], rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of data that belong to a key: (update, rank, micro-batch)."""
    seed = sum(part * 1000**i for i, part in enumerate(key))
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, FEATURES, generator=draw, dtype=torch.float64)
    return x.to(dtype), torch.randint(CLASSES, (rows,), generator=draw)


def mean_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x), y)


def wrap(optimizer: torch.optim.Optimizer, model: Any, **arguments: Any) -> Any:
    """The optimizer distributed, with the model's parameters by name."""
    return hvd.DistributedOptimizer(optimizer, model.named_parameters(), **arguments)


def own(model: Any, update: int, rows: int = 2, loss: Any = mean_loss) -> torch.Tensor:
    """This rank's loss."""
    return loss(model, *batch((update, hvd.rank(), 0), rows, next(model.parameters()).dtype))


def every(model: Any, update: int, rows: int = 2, loss: Any = mean_loss) -> torch.Tensor:
    """The mean of all ranks' losses."""
    dtype = next(model.parameters()).dtype
    return torch.stack([loss(model, *batch((update, r, 0), rows, dtype)) for r in range(hvd.size())]).mean()


def step_both(
    optimizer: torch.optim.Optimizer, model: Any, other: torch.optim.Optimizer, twin: Any, update: int
) -> None:
    """One update of the model by all ranks, and of its twin by this process alone."""
    optimizer.zero_grad()
    own(model, update).backward()
    optimizer.step()
    other.zero_grad()
    every(twin, update).backward()
    other.step()


@dataclass
class Trial:
    """How to train, and how many rows each micro-batch has.

    Attributes:
        wrapper: arguments of `DistributedOptimizer`.
        rows: of an update, for each rank the rows of its micro-batches; or a function of the update.
        average: how one process combines the micro-batches' mean losses.
        optimizer, model, dtype, loss: what is trained.
        after_backward: what the user does to the gradients before `step`: (model).
        updates: how many.
    """

    wrapper: dict[str, Any] = field(default_factory=dict)
    rows: Any = ((2,), (2,))
    average: str = "mean"
    optimizer: MakeOptimizer = sgd
    model: Callable[..., torch.nn.Module] = mlp
    dtype: torch.dtype = torch.float64
    loss: Callable[..., torch.Tensor] = mean_loss
    after_backward: Callable[[torch.nn.Module], Any] = lambda model: None
    updates: int = 5

    def together(self) -> torch.nn.Module:
        """The model that the ranks train."""
        model = self.model(self.dtype)
        optimizer = wrap(self.optimizer(model.parameters()), model, **self.wrapper)
        for update in range(self.updates):
            optimizer.zero_grad()
            for m, rows in enumerate(self._rows(update)[hvd.rank()]):
                optimizer.batch_samples = rows
                self.loss(model, *batch((update, hvd.rank(), m), rows, self.dtype)).backward()
            self.after_backward(model)
            optimizer.step()
        return model

    def alone(self) -> torch.nn.Module:
        """The model that one process trains on the same data."""
        model = self.model(self.dtype)
        optimizer = self.optimizer(model.parameters())
        for update in range(self.updates):
            optimizer.zero_grad()
            self._whole_loss(model, update).backward()
            self.after_backward(model)
            optimizer.step()
        return model

    def check(self, tolerance: float | None = None) -> None:
        """Both must end with the same weights."""
        limit = tolerance or {torch.float64: 1e-12, torch.float32: 1e-6}[self.dtype]
        assert_same(self.together(), self.alone(), limit)

    def _rows(self, update: int) -> Sequence[Sequence[int]]:
        return self.rows(update) if callable(self.rows) else self.rows

    def _whole_loss(self, model: torch.nn.Module, update: int) -> torch.Tensor:
        table = self._rows(update)
        data = {
            (r, m): batch((update, r, m), n, self.dtype)
            for r, row in enumerate(table)
            for m, n in enumerate(row)
        }
        if self.average == "samples":
            xs, ys = zip(*data.values(), strict=True)
            return self.loss(model, torch.cat(xs), torch.cat(ys))
        losses = [[self.loss(model, *data[r, m]) for m in range(len(row))] for r, row in enumerate(table)]
        if self.average == "mean":
            return torch.stack([torch.stack(row).mean() for row in losses]).mean()
        total = torch.stack([each for row in losses for each in row]).sum()
        return total / len(table) if self.average == "ranks" else total


def assert_same(ours: Any, theirs: Any, tolerance: float) -> None:
    """Two models' weights are equal to a relative tolerance, of the largest weight."""
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        difference = float((a.detach().double() - b.detach().double()).abs().max())
        largest = float(b.detach().double().abs().max())
        assert difference <= tolerance * max(largest, 1e-3), f"{name}: {difference} of {largest}"


def same_on_all_ranks(model: torch.nn.Module) -> None:
    """Ranks must end with bitwise equal weights."""
    flat = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    every = hvd.allgather(flat[None], name="same_on_all_ranks")
    assert torch.equal(every, every[:1].expand_as(every))


def twins(make: Callable[[], torch.nn.Module] = mlp) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two equal models."""
    model = make()
    return model, copy.deepcopy(model)
