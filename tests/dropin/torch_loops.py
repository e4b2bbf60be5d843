"""Loops as people write them, by ranks and by one process. Run on 2 ranks."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import hvdtrain.torch as hvd
from tests.dropin.trial import (
    Trial,
    adamw,
    assert_same,
    batch,
    mean_loss,
    mlp,
    same_on_all_ranks,
    sgd,
    twins,
)

F64 = torch.float64


def wrap(optimizer: torch.optim.Optimizer, model: Any, **arguments: Any) -> Any:
    return hvd.DistributedOptimizer(optimizer, model.named_parameters(), **arguments)


def own(model: Any, update: int, rows: int = 2, loss: Any = mean_loss) -> torch.Tensor:
    return loss(model, *batch((update, hvd.rank(), 0), rows, next(model.parameters()).dtype))


def every(model: Any, update: int, rows: int = 2, loss: Any = mean_loss) -> torch.Tensor:
    dtype = next(model.parameters()).dtype
    return torch.stack([loss(model, *batch((update, r, 0), rows, dtype)) for r in range(hvd.size())]).mean()


def check_it_is_still_the_users_optimizer() -> None:
    model, twin = twins()
    plain = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer = wrap(plain, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert type(optimizer).__name__ == "AdamW"
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    own(model, 0).backward()
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    other = torch.optim.AdamW(twin.parameters(), lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    twin.load_state_dict(model.state_dict())
    optimizer.load_state_dict(copy.deepcopy(other.state_dict()))
    for update in (1, 2):
        optimizer.zero_grad()
        own(model, update).backward()
        optimizer.step()
        other.zero_grad()
        every(twin, update).backward()
        other.step()
    assert_same(model, twin, 1e-12)


def check_grad_is_complete_when_backward_returns() -> None:
    for zero_to_none in (True, False):
        model, twin = twins()
        optimizer = wrap(sgd(model.parameters()), model)
        for update in range(3):
            optimizer.zero_grad(set_to_none=zero_to_none)
            twin.zero_grad()
            own(model, update).backward()
            every(twin, update).backward()
            for a, b in zip(model.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)


def check_backward_adds_to_grad_as_pytorchs() -> None:
    """Several backwards, none zeroed: `.grad` is their sum."""
    for arguments in ({}, {"average": "sum"}):
        model, twin = twins()
        optimizer = wrap(sgd(model.parameters()), model, **arguments)
        factor = hvd.size() if arguments else 1
        for update in range(3):
            own(model, update).backward()
            (factor * every(twin, update)).backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)
        optimizer.step()


def check_grad_of_what_a_later_backward_does_not_reach() -> None:
    model, twin = twins()
    optimizer = wrap(sgd(model.parameters()), model)
    for each, loss in ((model, own), (twin, every)):
        loss(each, 0).backward()
        each[2].bias.sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)
    optimizer.step()


def check_grad_between_micro_batches() -> None:
    """The optimizer's and the model's `zero_grad` both forget what has added up."""
    for model_zeroes in (True, False):
        model, twin = twins()
        optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=2)
        own(model, 0).backward()
        expected = torch.autograd.grad(own(twin, 0), [*twin.parameters()])
        torch.testing.assert_close(model[0].weight.grad, expected[0] / 2 / hvd.size())
        (model if model_zeroes else optimizer).zero_grad()
        own(model, 1).backward()
        if not model_zeroes:
            own(model, 1).backward()
        every(twin, 1).backward()
        factor = 0.5 if model_zeroes else 1.0
        torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad * factor)
        optimizer.step()


def check_autograd_grad_is_not_a_micro_batch() -> None:
    model, twin = twins()
    optimizer = wrap(sgd(model.parameters()), model)
    own(model, 0).backward()
    torch.autograd.grad(own(model, 1), [*model.parameters()])
    every(twin, 0).backward()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)
    optimizer.step()


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
        optimizer.zero_grad()
        own(model, update).backward()
        optimizer.step()
        other.zero_grad()
        every(twin, update).backward()
        other.step()
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
            optimizer.zero_grad()
            own(model, 5 * phase + update).backward()
            optimizer.step()
            other.zero_grad()
            every(twin, 5 * phase + update).backward()
            other.step()
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


def check_grad_scaler() -> None:
    """As in PyTorch's documentation of AMP; on one rank the third update overflows."""
    for k, fused in ((1, False), (2, False), (1, True)):

        def make(parameters: Any, fused: bool = fused) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=0.2, momentum=0.9, fused=fused)

        model, twin = twins(lambda: mlp(torch.float32))
        limit = 0.5
        optimizer = wrap(make(model.parameters()), model, gradient_accumulation_steps=k, max_grad_norm=limit)
        other = make(twin.parameters())
        ours, theirs = (torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2) for _ in range(2))
        for update in range(6):
            optimizer.zero_grad()
            for m in range(k):
                spoil = float("inf") if (update, hvd.rank(), m) == (2, 1, k - 1) else 1.0
                ours.scale(own(model, 10 * update + m) * spoil).backward()
            ours.step(optimizer)
            ours.update()
            other.zero_grad()
            losses = sum(every(twin, 10 * update + m) for m in range(k)) / k
            theirs.scale(losses * (float("inf") if update == 2 else 1.0)).backward()
            theirs.unscale_(other)
            torch.nn.utils.clip_grad_norm_(twin.parameters(), limit)
            theirs.step(other)
            theirs.update()
            assert ours.get_scale() == theirs.get_scale(), (update, fused)
        assert_same(model, twin, 1e-6)


def check_a_skipped_update_keeps_the_compressions_state() -> None:
    model, twin = (mlp(torch.float32) for _ in range(2))
    optimizer, other = (wrap(sgd(m.parameters()), m, compression="fp16") for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000, backoff_factor=1.0 - 1e-9)
    for update in range(4):
        if update == 2:
            optimizer.zero_grad()
            scaler.scale(own(model, 99) * float("nan")).backward()
            scaler.step(optimizer)
            scaler.update(64.0)
        for each, m in ((optimizer, model), (other, twin)):
            each.zero_grad()
            scaler.scale(own(m, update)).backward()
            scaler.step(each)
            scaler.update(64.0)
    assert_same(model, twin, 0.0)


def check_closures() -> None:
    """LBFGS decides by the loss and calls the closure as often as it likes: ranks must decide alike."""
    for search in (None, "strong_wolfe"):
        model, twin = twins()

        def make(parameters: Any, search: Any = search) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(
                parameters, lr=0.5, max_iter=8, line_search_fn=search, tolerance_change=1e-4
            )

        optimizer, other = wrap(make(model.parameters()), model), make(twin.parameters())

        def ours(model: Any = model, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = own(model, 0, rows=8)
            loss.backward()
            return loss

        def theirs(twin: Any = twin, other: Any = other) -> torch.Tensor:
            other.zero_grad()
            loss = every(twin, 0, rows=8)
            loss.backward()
            return loss

        for _ in range(3):
            found, expected = optimizer.step(ours), other.step(theirs)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=0.0)
        assert_same(model, twin, 1e-9)


def check_compiled_models() -> None:
    model, twin = twins()
    optimizer, other = wrap(sgd(model.parameters()), model, bucket_cap_mb=1e-4), sgd(twin.parameters())
    # Inductor's own graphs take a compiler and a minute; this has its autograd without.
    compiled = torch.compile(model, backend="aot_eager")
    for update in range(3):
        optimizer.zero_grad()
        mean_loss(compiled, *batch((update, hvd.rank(), 0), 2, F64)).backward()
        optimizer.step()
        other.zero_grad()
        every(twin, update).backward()
        other.step()
    assert_same(model, twin, 1e-12)


def check_activation_checkpoints() -> None:
    for reentrant in (False, True):
        model, twin = twins()
        optimizer, other = wrap(sgd(model.parameters()), model), sgd(twin.parameters())
        for update in range(3):
            optimizer.zero_grad()
            x, y = batch((update, hvd.rank(), 0), 2, F64)
            x.requires_grad_(True)
            hidden = checkpoint(model[:2], x, use_reentrant=reentrant)
            functional.cross_entropy(checkpoint(model[2], hidden, use_reentrant=reentrant), y).backward()
            optimizer.step()
            other.zero_grad()
            every(twin, update).backward()
            other.step()
        assert_same(model, twin, 1e-12)


def check_a_backward_that_fails_is_forgotten() -> None:
    model, twin = twins()
    optimizer = wrap(sgd(model.parameters()), model, bucket_cap_mb=1e-5)
    own(model, 6).backward()
    handle = model[0].weight.register_hook(lambda gradient: 1 / 0)
    try:
        own(model, 7).backward()
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("did not fail")
    handle.remove()
    optimizer.zero_grad()
    own(model, 0).backward()
    every(twin, 0).backward()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)
    optimizer.step()


def check_horovods_synchronize() -> None:
    """Horovod's documented clipping: synchronize, clip, skip_synchronize."""

    def clipped(model: Any) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)

    model, twin = twins()
    optimizer, other = (
        wrap(sgd(model.parameters()), model, backward_passes_per_step=3),
        sgd(twin.parameters()),
    )
    for update in range(3):
        optimizer.zero_grad()
        # One micro-batch less than was said.
        for m in range(2):
            own(model, 10 * update + m).backward()
        optimizer.synchronize()
        clipped(model)
        with optimizer.skip_synchronize():
            optimizer.step()
        other.zero_grad()
        sum(every(twin, 10 * update + m) for m in range(2)).backward()
        clipped(twin)
        other.step()
    assert_same(model, twin, 1e-12)
