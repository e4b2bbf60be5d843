"""Loops as people write them, by ranks and by one process. Run on 2 ranks."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import hvdtrain.torch as hvd
from tests.dropin.torch_misuse import told
from tests.dropin.trial import (
    adamw,
    assert_same,
    batch,
    every,
    mean_loss,
    mlp,
    own,
    sgd,
    step_both,
    twins,
    wrap,
)

F64 = torch.float64


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
        step_both(optimizer, model, other, twin, update)
    assert_same(model, twin, 1e-12)


class Apex(torch.optim.SGD):
    """With a `zero_grad` that takes no argument, as Apex' optimizers."""

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


def check_an_optimizer_with_a_zero_grad_of_its_own() -> None:
    model, twin = twins()
    optimizer, other = (
        wrap(Apex(model.parameters(), lr=0.2), model, gradient_accumulation_steps=2),
        Apex(twin.parameters(), lr=0.2),
    )
    for update in range(3):
        own(model, 100 + update).backward()
        for each in (optimizer, other):
            each.zero_grad()
        for _ in range(2):
            own(model, update).backward()
        every(twin, update).backward()
        for each in (optimizer, other):
            each.step()
    assert_same(model, twin, 1e-12)


def check_schedulers_made_before_and_after_the_wrapper() -> None:
    model = mlp()
    plain = torch.optim.SGD(model.parameters(), lr=0.4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = torch.optim.lr_scheduler.StepLR(plain, step_size=1, gamma=0.5)
        optimizer = wrap(plain, model)
        after = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for update in range(2):
            optimizer.zero_grad()
            own(model, update).backward()
            optimizer.step()
            before.step()
            after.step()
    assert optimizer.param_groups[0]["lr"] == 0.4 / 16
    # The order that schedulers warn of is still seen.
    model = mlp()
    late = torch.optim.lr_scheduler.StepLR(wrap(torch.optim.SGD(model.parameters(), lr=0.4), model), 1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        late.step()
    assert any("before `optimizer.step()`" in str(each.message) for each in found)


def check_only_early_steps_in_a_row_are_warned_of() -> None:
    model = mlp()
    optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=2)

    def epoch(*windows: int) -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for micro_batches in windows:
                for each in range(micro_batches):
                    own(model, each).backward()
                optimizer.step()
                optimizer.zero_grad()
        return [str(each.message) for each in found]

    for _ in range(4):
        assert epoch(2, 1) == []
    (warned,) = epoch(1, 1, 1, 1)
    assert "step() was called three times in a row after fewer than 2 micro-batches" in warned


def check_copies_of_a_wrapped_optimizer() -> None:
    """By deepcopy, pickle and torch.save: state and options, and a sentence where it would train apart."""

    def saved(pair: Any) -> Any:
        file = io.BytesIO()
        torch.save(pair, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    for copied in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), saved):
        model, twin = twins()
        optimizer, other = wrap(adamw(model.parameters()), model), adamw(twin.parameters())
        step_both(optimizer, model, other, twin, 0)
        found_model, found = copied((model, optimizer))
        found_model, found = copied((found_model, found))
        assert isinstance(found, torch.optim.AdamW)
        assert type(found).__name__ == "AdamW"
        assert found.param_groups[0]["params"][0] is found_model[0].weight
        own(found_model, 1).backward()
        told(("is a copy", "wrap it by DistributedOptimizer"), found.step)
        found = wrap(found, found_model)
        for update in (1, 2):
            step_both(found, found_model, other, twin, update)
        assert_same(found_model, twin, 1e-12)
        # What was copied goes on by itself.
        own(model, 1).backward()
        optimizer.step()


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
        for _ in range(2):
            own(model, 1).backward()
        every(twin, 1).backward()
        torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)
        optimizer.step()


def check_autograd_grad_is_not_a_micro_batch() -> None:
    model, twin = twins()
    optimizer = wrap(sgd(model.parameters()), model)
    own(model, 0).backward()
    torch.autograd.grad(own(model, 1), [*model.parameters()])
    every(twin, 0).backward()
    torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)
    optimizer.step()


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
    for search, number in ((None, False), ("strong_wolfe", False), ("strong_wolfe", True)):
        model, twin = twins()

        def make(parameters: Any, search: Any = search) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(
                parameters, lr=0.5, max_iter=8, line_search_fn=search, tolerance_change=1e-4
            )

        optimizer, other = wrap(make(model.parameters()), model), make(twin.parameters())

        def ours(model: Any = model, optimizer: Any = optimizer, number: bool = number) -> Any:
            optimizer.zero_grad()
            loss = own(model, 0, rows=8)
            loss.backward()
            return loss.item() if number else loss

        def theirs(twin: Any = twin, other: Any = other, number: bool = number) -> Any:
            other.zero_grad()
            loss = every(twin, 0, rows=8)
            loss.backward()
            return loss.item() if number else loss

        for _ in range(3):
            found, expected = optimizer.step(ours), other.step(theirs)
            assert isinstance(found, float) == number
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
