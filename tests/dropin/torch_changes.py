"""What programs do to parameters and to `.grad` outside of backward, against one process. Run on 2 ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

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
    same_on_all_ranks,
    sgd,
    step_both,
    twins,
    wrap,
)

F64 = torch.float64


def same_grads(model: Any, twin: Any, rtol: float = 1e-12) -> None:
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=rtol, atol=1e-15)


def fresh(layer: Any) -> None:
    for p in layer.parameters():
        p.data = p.data.float().double() + 0.0


def emptied(layer: Any) -> None:
    kept = {k: v.clone() for k, v in layer.state_dict().items()}
    layer.to_empty(device="cpu")
    layer.load_state_dict(kept)


def moved(layer: Any) -> None:
    layer.cpu()


# Each leaves the layer's values and dtype as they were, or alike on both sides.
CONVERSIONS: tuple[Callable[[Any], Any], ...] = (
    lambda layer: layer.half().double(),
    lambda layer: layer.float().double(),
    moved,
    fresh,
    emptied,
)


def check_layers_converted_and_back() -> None:
    """Before the first backward, between updates before and after `zero_grad`, and inside a window.

    Inside, PyTorch converts what has added up as well: those that round it are told, see below.
    """
    for convert in CONVERSIONS:
        for which in (0, 2):
            times = ("first", "before zero_grad", "after zero_grad")
            for when in (*times, "inside") if convert in (fresh, moved) else times:
                model, twin = twins()
                k = 2 if when == "inside" else 1
                optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=k)
                other = sgd(twin.parameters())
                for update in range(3):
                    convert_now = update == (0 if when == "first" else 1)
                    for each, opt, loss in ((model, optimizer, own), (twin, other, every)):
                        if convert_now and when in ("first", "before zero_grad"):
                            convert(each[which])
                        opt.zero_grad()
                        if convert_now and when == "after zero_grad":
                            convert(each[which])
                        for m in range(k):
                            (loss(each, 10 * update + m) / (k if each is twin else 1)).backward()
                            if convert_now and when == "inside" and m == 0:
                                convert(each[which])
                        opt.step()
                assert_same(model, twin, 1e-12)
                same_on_all_ranks(model)


def check_a_layer_that_stays_converted_is_told() -> None:
    model = mlp(torch.float32)
    optimizer = wrap(sgd(model.parameters()), model)
    own(model, 0).backward()
    optimizer.step()
    optimizer.zero_grad()
    model[2].double()
    x, y = batch((1, hvd.rank(), 0), 2, torch.float32)
    before = [p.detach().clone() for p in model.parameters()]
    told(
        ("'2.", "float64", "converted after it was wrapped", "DistributedOptimizer"),
        lambda: torch.nn.functional.cross_entropy(model[2](model[:2](x).double()), y).backward(),
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def check_a_conversion_of_a_gradient_that_is_added_to_is_told() -> None:
    for k in (1, 2):
        convert_and_add(k)


def convert_and_add(k: int) -> None:
    model = mlp()
    optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=k)
    own(model, 0).backward()
    if k == 1:
        optimizer.step()
    model[2].half().double()
    # Not zeroed: PyTorch adds to what half() has made of the last update's gradient.
    told(("'2.", "zero_grad()", "convert"), lambda: own(model, 1).backward())


def check_sixteen_bits_after_the_wrapper() -> None:
    """Gradients of both add up in float32: the bucket stays what it is."""
    model, twin = mlp(torch.float32), mlp(torch.float32).bfloat16()
    optimizer, other = wrap(sgd(model.parameters()), model), wrap(sgd(twin.parameters()), twin)
    model.bfloat16()
    for update in range(3):
        for each, m in ((optimizer, model), (other, twin)):
            each.zero_grad()
            own(m, update).backward()
            each.step()
    assert_same(model, twin, 0.0)


def check_layers_without_shapes_are_told() -> None:
    model = torch.nn.Sequential(torch.nn.LazyLinear(4), torch.nn.Linear(4, 3))
    told(("'0.weight'", "forward pass", "lazy"), lambda: wrap(sgd(model.parameters()), model))
    told(("'0.weight'", "forward pass", "lazy"), lambda: hvd.broadcast_parameters(model.state_dict()))


def zero_model(model: Any, optimizer: Any) -> None:
    model.zero_grad()


def zero_in_place(model: Any, optimizer: Any) -> None:
    model.zero_grad(set_to_none=False)


def zero_by_hand(model: Any, optimizer: Any) -> None:
    for p in model.parameters():
        p.grad = None


def zero_optimizer(model: Any, optimizer: Any) -> None:
    optimizer.zero_grad()


def check_gradients_discarded_inside_a_window() -> None:
    """What was there before does not count, neither in the sum nor in what it is divided by."""
    for zero in (zero_model, zero_in_place, zero_by_hand, zero_optimizer):
        for dtype in (F64, torch.float32, torch.bfloat16):
            for average in ("mean", "samples", "sum"):
                results = []
                for discards in (True, False):
                    model = mlp(dtype)
                    optimizer = wrap(
                        sgd(model.parameters()), model, gradient_accumulation_steps=3, average=average
                    )
                    for update in range(2):
                        optimizer.zero_grad()
                        for m in range(2 * discards):
                            optimizer.batch_samples = 7
                            own(model, 100 + m, rows=7).backward()
                        if discards:
                            zero(model, optimizer)
                        for m in range(3):
                            optimizer.batch_samples = 1 + m
                            own(model, 10 * update + m, rows=1 + m).backward()
                        optimizer.step()
                    results.append(model)
                assert_same(*results, 0.0)


def check_one_gradient_discarded_or_changed_inside_a_window() -> None:
    for dtype in (F64, torch.bfloat16):
        model, twin = twins(lambda dtype=dtype: mlp(dtype))
        optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=2)
        own(model, 0).backward()
        every(twin, 0).div(2).backward()
        for each in (model, twin):
            each[0].weight.grad = None
            each[0].bias.grad.mul_(3)
            each[2].weight.grad = each[2].weight.grad * -1
        own(model, 1).backward()
        every(twin, 1).div(2).backward()
        if dtype == F64:
            same_grads(model, twin)
        else:
            for a, b in zip(model.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=5e-2, atol=5e-3)
        optimizer.step()


def check_micro_batches_that_an_epoch_leaves_over() -> None:
    """Two of one epoch and four of the next, then step(): the mean of all six, or of their samples."""
    for average in ("mean", "samples", "ranks"):
        for dtype, tolerance in ((F64, 1e-12), (torch.float32, 1e-6)):
            model, twin = twins(lambda dtype=dtype: mlp(dtype))
            optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=4, average=average)
            other = sgd(twin.parameters())
            # The second epoch ends with one of four, without a step; the third has only what fits.
            for update, parts in enumerate((6, 4, 9)):
                optimizer.zero_grad(set_to_none=bool(update % 2))
                other.zero_grad()
                data = {}
                for m in range(parts):
                    for r in range(2):
                        rows = 1 + (m + r) % 3 if average == "samples" else 2
                        data[r, m] = batch((update, r, m), rows, dtype)
                    x, y = data[hvd.rank(), m]
                    optimizer.batch_samples = len(x)
                    mean_loss(model, x, y).backward()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    optimizer.step()
                losses = [mean_loss(twin, *each) * len(each[0]) for each in data.values()]
                rows = sum(len(x) for x, _ in data.values())
                total = torch.stack(losses).sum() / rows
                (total * parts if average == "ranks" else total).backward()
                other.step()
            assert_same(model, twin, tolerance)


def check_gradients_set_by_hand() -> None:
    """From torch.autograd.grad, without a backward: reduced in step(), or in synchronize()."""
    for synchronize in (False, True):
        for dtype, make in ((F64, sgd), (F64, adamw), (torch.float32, sgd)):
            model, twin = twins(lambda dtype=dtype: mlp(dtype))
            optimizer, other = wrap(make(model.parameters()), model), make(twin.parameters())
            for update in range(4):
                for each, opt, loss in ((model, optimizer, own), (twin, other, every)):
                    found = torch.autograd.grad(loss(each, update), [*each.parameters()])
                    # In place of the last update's, into it, or after it was zeroed.
                    if update == 2:
                        opt.zero_grad()
                    for p, gradient in zip(each.parameters(), found, strict=True):
                        if update == 1:
                            p.grad.copy_(gradient)
                        else:
                            p.grad = gradient
                if synchronize:
                    optimizer.synchronize()
                    same_grads(model, twin, 1e-12 if dtype == F64 else 1e-4)
                for opt in (optimizer, other):
                    opt.step()
                # Applied: the same gradients are no new ones.
                told(("call step() once",), optimizer.step)
            assert_same(model, twin, 1e-12 if dtype == F64 else 1e-6)
            # And backward goes on from there.
            step_both(optimizer, model, other, twin, 9)
            assert_same(model, twin, 1e-12 if dtype == F64 else 1e-6)


def check_a_projected_gradient_of_two_tasks() -> None:
    """As PCGrad: two gradients by autograd.grad, one taken off the other, the sum put into `.grad`."""
    model = mlp()
    optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=4, average="samples")
    parameters = [*model.parameters()]
    expected = [torch.zeros_like(p) for p in parameters]
    for r in range(2):
        for total, g in zip(expected, _merged(model, parameters, r), strict=True):
            total.add_(g * (1 + r) / 3)
    for p, g in zip(parameters, _merged(model, parameters, hvd.rank()), strict=True):
        p.grad = g
    optimizer.batch_samples = 1 + hvd.rank()
    optimizer.synchronize()
    for p, g in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-12, atol=1e-15)
    optimizer.step()


def _merged(model: Any, parameters: list[Any], rank: int) -> list[torch.Tensor]:
    first, second = (
        torch.autograd.grad(mean_loss(model, *batch((0, rank, task), 3, F64)), parameters) for task in (0, 1)
    )
    dot = sum((a * b).sum() for a, b in zip(first, second, strict=True))
    norm = sum((b * b).sum() for b in second)
    return [a + b - torch.clamp(dot / norm, max=0) * b for a, b in zip(first, second, strict=True)]


def check_gradients_that_are_kept() -> None:
    """A gradient that a program holds is its own once `.grad` is None; before, it is what PyTorch adds to."""
    holds: tuple[Callable[[Any], Any], ...] = (
        lambda g: g,
        lambda g: g.view(-1)[:3],
        lambda g: g.detach(),
        lambda g: g.numpy(),
    )
    for hold in holds:
        for to_none in (True, False):
            model, twin = twins()
            optimizer, other = wrap(sgd(model.parameters()), model), sgd(twin.parameters())
            kept: list[tuple[Any, Any]] = []
            for update in range(4):
                for each, opt, loss in ((model, optimizer, own), (twin, other, every)):
                    opt.zero_grad(set_to_none=to_none)
                    loss(each, update).backward()
                pairs = [*zip(model.parameters(), twin.parameters(), strict=True)][1:3]
                kept += [(hold(a.grad), hold(b.grad)) for a, b in pairs]
                for ours, theirs in kept:
                    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
                same_grads(model, twin)
                for opt in (optimizer, other):
                    opt.step()
            assert_same(model, twin, 1e-12)


def check_a_gradient_of_the_users_own_is_added_to_in_place() -> None:
    model, twin = twins()
    optimizer = wrap(sgd(model.parameters()), model)
    mine = []
    for each in (model, twin):
        each[0].weight.grad = torch.ones_like(each[0].weight)
        mine.append(each[0].weight.grad)
    for update in range(2):
        own(model, update).backward()
        every(twin, update).backward()
    same_grads(model, twin)
    torch.testing.assert_close(*mine, rtol=1e-12, atol=1e-15)
    optimizer.step()


def check_buckets_stay_where_they_are() -> None:
    """Nobody holds a gradient: nothing is copied or allocated, whatever the compression."""
    # Not Adasum: Horovod may hold on to the parts of a bucket for a moment longer.
    for compression in ("none", "fp16", "bf16", "int8", "sign", "topk", "powersgd"):
        for k in (1, 2):
            model = mlp(torch.float32)
            optimizer = wrap(
                torch.optim.SGD(model.parameters(), lr=0.1),
                model,
                compression=compression,
                gradient_accumulation_steps=k,
            )
            places = set()
            for update in range(4):
                optimizer.zero_grad()
                for m in range(k):
                    own(model, 10 * update + m).backward()
                optimizer.step()
                places.add(tuple(p.grad.data_ptr() for p in model.parameters()))
            assert len(places) == 1, compression


def check_reductions_start_during_backward() -> None:
    model = mlp()
    optimizer = wrap(sgd(model.parameters()), model, bucket_cap_mb=1e-5)
    started = []
    for update in range(3):
        optimizer.zero_grad()
        before = optimizer._gradients.driver.wire_bytes
        handle = model[0].weight.register_hook(
            lambda _, before=before: started.append(optimizer._gradients.driver.wire_bytes > before)
        )
        own(model, update).backward()
        handle.remove()
        optimizer.step()
    # In the first one it is not known yet whether backwards are inside each other.
    assert started == [False, True, True]
