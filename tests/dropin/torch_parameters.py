"""Which parameters there are, of what kind, and who owns them. Run on 2 ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

import hvdtrain.torch as hvd
from hvdtrain.core.errors import SpecError
from tests.dropin.trial import (
    Trial,
    adamw,
    assert_same,
    batch,
    every,
    mlp,
    own,
    same_on_all_ranks,
    sgd,
    step_both,
    twins,
    wrap,
)

F64 = torch.float64


class Branches(torch.nn.Module):
    """Two heads, of which a batch uses one, and a third that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.trunk = torch.nn.Linear(6, 8, dtype=F64)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(8, 3, dtype=F64) for _ in range(3))

    def forward(self, x: torch.Tensor, head: int) -> torch.Tensor:
        return self.heads[head](torch.tanh(self.trunk(x)))


def check_parameters_unused_in_a_step() -> None:
    model, twin = twins(Branches)
    optimizer, other = wrap(adamw(model.parameters()), model), adamw(twin.parameters())
    for update in range(4):
        # Each rank another head at first; later both the same.
        heads = [0, 1] if update < 2 else [1, 1]
        optimizer.zero_grad()
        x, y = batch((update, hvd.rank(), 0), 2, F64)
        functional.cross_entropy(model(x, heads[hvd.rank()]), y).backward()
        optimizer.step()
        other.zero_grad()
        losses = []
        for r in range(2):
            x, y = batch((update, r, 0), 2, F64)
            losses.append(functional.cross_entropy(twin(x, heads[r]), y))
        torch.stack(losses).mean().backward()
        other.step()
        assert model.heads[2].weight.grad is None
        assert (model.heads[0].weight.grad is None) == (update >= 2)
    assert_same(model, twin, 1e-12)


def check_freezing_and_thawing() -> None:
    model, twin = twins()
    for each in (model, twin):
        each[0].requires_grad_(False)
    optimizer, other = wrap(adamw(model.parameters()), model), adamw(twin.parameters())
    for update in range(6):
        if update in (2, 4):
            for each in (model, twin):
                each[0].requires_grad_(update == 2)
                each[2].bias.requires_grad_(update == 4)
        step_both(optimizer, model, other, twin, update)
    assert_same(model, twin, 1e-12)


def check_parameters_added_later() -> None:
    model, twin = twins()
    optimizer = wrap(adamw(model[2].parameters()), model)
    other = adamw(twin[2].parameters())
    for update in range(4):
        if update == 2:
            optimizer.add_param_group({"params": [*model[0].parameters()], "lr": 0.01})
            other.add_param_group({"params": [*twin[0].parameters()], "lr": 0.01})
        for each in (model, twin):
            each.zero_grad()
        own(model, update).backward()
        optimizer.step()
        every(twin, update).backward()
        other.step()
    assert_same(model, twin, 1e-12)


def check_a_head_that_did_not_exist_at_the_wrap() -> None:
    """It gets the name that the group gives it, or one of its place."""
    for named in (True, False):
        model, twin = twins()
        pairs = [*model.named_parameters()] if named else None
        make = torch.optim.SGD
        optimizer = make(pairs if named else model.parameters(), lr=0.1)
        optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters(), bucket_cap_mb=1e-4)
        other = make(twin.parameters(), lr=0.1)
        step_both(optimizer, model, other, twin, 0)
        for each, opt in ((model, optimizer), (twin, other)):
            torch.manual_seed(9)
            each.append(torch.nn.Linear(3, 3, dtype=F64))
            head = each[3].named_parameters() if named and opt is optimizer else each[3].parameters()
            opt.add_param_group({"params": [*head]})
        assert [*optimizer._gradients.filling.parameters][4:] == (
            ["weight", "bias"] if named else ["group1.0", "group1.1"]
        )
        for update in (1, 2):
            step_both(optimizer, model, other, twin, update)
        assert_same(model, twin, 1e-12)


def check_a_group_that_is_refused_is_not_there() -> None:
    model = mlp()
    optimizer = wrap(sgd(model.parameters()), model)
    try:
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))]})
    except SpecError as error:
        assert "complex64" in str(error)
    else:
        raise AssertionError("accepted")
    assert len(optimizer.param_groups) == 1
    own(model, 0).backward()
    optimizer.step()


class Tied(torch.nn.Module):
    """One matrix, used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(6, 6, dtype=F64)
        self.second = torch.nn.Linear(6, 6, dtype=F64)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def check_a_second_wrapper_takes_the_parameters_over() -> None:
    """A next phase of training, with an optimizer of its own."""
    model, twin = twins()
    for phase, make in enumerate((sgd, adamw)):
        optimizer, other = wrap(make(model.parameters()), model), make(twin.parameters())
        for update in range(2):
            step_both(optimizer, model, other, twin, 5 * phase + update)
    assert_same(model, twin, 1e-12)


def check_shared_parameters() -> None:
    Trial({"gradient_accumulation_steps": 2}, ((2, 2), (2, 2)), model=lambda dtype: Tied()).check()


def check_several_models() -> None:
    """Two optimizers filled by one backward, and one more that another backward reaches as well."""
    pairs = [twins(mlp) for _ in range(2)]
    ours, theirs = zip(*pairs, strict=True)
    wrapped = [
        wrap(make(m.parameters()), m, bucket_cap_mb=1e-4) for make, m in zip((sgd, adamw), ours, strict=True)
    ]
    plain = [make(m.parameters()) for make, m in zip((sgd, adamw), theirs, strict=True)]
    for update in range(3):
        for optimizer in (*wrapped, *plain):
            optimizer.zero_grad()
        # The ranks' graphs reach the two models in another order.
        losses = [own(m, update) for m in ours]
        (sum(losses) if hvd.rank() else sum(reversed(losses))).backward()
        sum(every(m, update) for m in theirs).backward()
        for optimizer in (*wrapped, *plain):
            optimizer.step()
        wrapped[0].zero_grad()
        plain[0].zero_grad()
        own(ours[0], update + 10).backward()
        wrapped[0].step()
        every(theirs[0], update + 10).backward()
        plain[0].step()
    for a, b in pairs:
        assert_same(a, b, 1e-12)


class Lookup(torch.nn.Module):
    """A table of which a batch touches few rows, and one of which it touches none on rank 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table = torch.nn.Embedding(20, 4, sparse=True, dtype=F64)
        self.rare = torch.nn.Embedding(20, 4, sparse=True, dtype=F64)


def check_sparse_embeddings() -> None:
    for make in (
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SparseAdam([*p], lr=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.1),
    ):
        model, twin = twins(Lookup)
        optimizer, other = wrap(make(model.parameters()), model), make(twin.parameters())

        def loss(each: Any, update: int, rank: int) -> torch.Tensor:
            at = torch.tensor([update, 3 + rank, 3 + rank])
            found = (each.table(at) ** 2).sum()
            return found if rank else found + (each.rare(at) ** 2).sum()

        for update in range(3):
            optimizer.zero_grad()
            loss(model, update, hvd.rank()).backward()
            assert model.rare.weight.grad.is_sparse
            optimizer.step()
            other.zero_grad()
            (sum(loss(twin, update, r) for r in range(2)) / 2).backward()
            other.step()
        assert_same(model, twin, 1e-12)


def check_clipping_of_sparse_gradients() -> None:
    model, twin = twins(Lookup)
    twin.table.sparse = twin.rare.sparse = False
    optimizer, other = wrap(sgd(model.parameters()), model, max_grad_norm=0.1), sgd(twin.parameters())
    for update in range(3):
        rows = [torch.tensor([update, 3 + rank, 3 + rank]) for rank in range(2)]
        optimizer.zero_grad()
        ((model.table(rows[hvd.rank()]) ** 2).sum() + model.rare(rows[0]).sum()).backward()
        optimizer.step()
        other.zero_grad()
        (sum((twin.table(at) ** 2).sum() for at in rows) / 2 + twin.rare(rows[0]).sum()).backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        other.step()
    assert_same(model, twin, 1e-12)


class Mixed(torch.nn.Module):
    """Layers of four dtypes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        kinds = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6, dtype=kind) for kind in kinds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x.to(layer.weight.dtype)))
        return x.double()


def check_parameters_of_mixed_dtypes() -> None:
    model, twin = twins(Mixed)
    optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=2)
    for m in range(2):
        own(model, m, rows=4).backward()
    for m in range(2):
        (every(twin, m, rows=4) / 2).backward()
    for a, b in zip(model.layers, twin.layers, strict=True):
        assert a.weight.grad.dtype == a.weight.dtype
        # One process adds up in 16 bits; half a unit of those is the difference allowed.
        rtol = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-3, F64: 1e-3}[a.weight.dtype]
        torch.testing.assert_close(a.weight.grad, b.weight.grad, rtol=rtol, atol=1e-4)
    optimizer.step()
    same_on_all_ranks(model)
