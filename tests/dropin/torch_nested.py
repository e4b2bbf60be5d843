"""Backwards that run other backwards inside, by ranks and by one process. Run on 2 ranks."""

from __future__ import annotations

from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import hvdtrain.torch as hvd
from hvdtrain.core.errors import TrainingError
from tests.dropin.trial import assert_same, batch, same_on_all_ranks, sgd, twins, wrap

F64 = torch.float64
Segment = Callable[[Callable[..., torch.Tensor], torch.Tensor], torch.Tensor]


class Parts(torch.nn.Module):
    """Layers of which some compute in a segment of their own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        sizes = {"stem": (6, 8), "middle": (8, 8), "late": (8, 8), "head": (8, 3)}
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, torch.nn.Linear(inputs, outputs, dtype=F64))


def plain(run: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return run(x)


def reentrant(run: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return checkpoint(run, x, use_reentrant=True)


class _Reversed(torch.autograd.Function):
    """As a reversible network: its backward computes forward again, and runs a backward over parameters."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, run: Any) -> torch.Tensor:
        ctx.run = run
        ctx.save_for_backward(x)
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            out = ctx.run(x)
        torch.autograd.backward(out, gradient)
        return x.grad, None


def reversible(run: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return _Reversed.apply(x, run)


def head_outside(model: Any, segment: Segment, x: torch.Tensor) -> torch.Tensor:
    return model.head(segment(lambda x: torch.tanh(model.middle(torch.tanh(model.stem(x)))), x))


def stem_outside(model: Any, segment: Segment, x: torch.Tensor) -> torch.Tensor:
    return segment(lambda x: model.head(torch.tanh(model.middle(x))), torch.tanh(model.stem(x)))


def both_outside(model: Any, segment: Segment, x: torch.Tensor) -> torch.Tensor:
    x = segment(lambda x: torch.tanh(model.middle(x)), torch.tanh(model.stem(x)))
    return model.head(segment(lambda x: torch.tanh(model.late(x)), x))


def all_inside(model: Any, segment: Segment, x: torch.Tensor) -> torch.Tensor:
    return segment(lambda x: model.head(torch.tanh(model.stem(x))), x)


def inside_each_other(model: Any, segment: Segment, x: torch.Tensor) -> torch.Tensor:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(model.late(segment(lambda x: torch.tanh(model.middle(x)), x)))

    return model.head(segment(inner, torch.tanh(model.stem(x))))


def shared_by_segments(model: Any, segment: Segment, x: torch.Tensor) -> torch.Tensor:
    """One layer in three segments, and outside as well."""
    x = torch.tanh(model.stem(x))
    for _ in range(3):
        x = segment(lambda x: torch.tanh(model.middle(x)), x)
    return model.head(torch.tanh(model.middle(x)))


SHAPES = (head_outside, stem_outside, both_outside, all_inside, inside_each_other, shared_by_segments)


def loss(model: Any, shape: Any, segment: Segment, key: tuple[int, int, int]) -> torch.Tensor:
    x, y = batch(key, 2, F64)
    return functional.cross_entropy(shape(model, segment, x.requires_grad_(True)), y)


def whole(model: Any, shape: Any, update: int, k: int) -> torch.Tensor:
    """The mean over ranks and micro-batches, in one process."""
    losses = [loss(model, shape, plain, (update, r, m)) for r in range(hvd.size()) for m in range(k)]
    return torch.stack(losses).mean()


def check_backwards_inside_a_backward() -> None:
    for shape in SHAPES:
        for segment in (reentrant, reversible):
            for k, cap in ((1, 25.0), (2, 1e-4)):
                model, twin = twins(Parts)
                optimizer = wrap(
                    sgd(model.parameters()), model, gradient_accumulation_steps=k, bucket_cap_mb=cap
                )
                other = sgd(twin.parameters())
                for update in range(3):
                    for each in (optimizer, other):
                        each.zero_grad()
                    for m in range(k):
                        loss(model, shape, segment, (update, hvd.rank(), m)).backward()
                    whole(twin, shape, update, k).backward()
                    # Whole when the outermost returns, before step().
                    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
                        assert (a.grad is None) == (b.grad is None)
                        if a.grad is not None:
                            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)
                    for each in (optimizer, other):
                        each.step()
                assert_same(model, twin, 1e-12)


def check_compressed_gradients_of_such_backwards() -> None:
    """What one reduction a bucket gives, however often its parameters had gradients; 16 bits as well."""
    for dtype in (torch.float32, torch.bfloat16):
        results = []
        for segment in (reentrant, plain):
            model = Parts().to(dtype)
            optimizer = wrap(sgd(model.parameters()), model, compression={"type": "topk", "ratio": 0.3})
            for update in range(3):
                optimizer.zero_grad()
                x = batch((update, hvd.rank(), 0), 2, dtype)[0].requires_grad_(True)
                shared_by_segments(model, segment, x).float().logsumexp(1).sum().backward()
                optimizer.step()
            same_on_all_ranks(model)
            results.append(model)
        tolerance = 1e-6 if dtype == torch.float32 else 2e-2
        assert_same(*results, tolerance)


def check_a_backward_inside_over_other_parameters() -> None:
    """The inner backward is another optimizer's, which takes its step, twice, while the outer one runs."""

    class Trains(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, train: Any) -> torch.Tensor:
            ctx.train = train
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> Any:
            with torch.enable_grad():
                ctx.train()
            return gradient, None

    main, main_twin = twins(Parts)
    aside, aside_twin = twins(Parts)

    def run(model: Any, other: Any, make: Any, mean: Any) -> None:
        optimizer, second = make(model), make(other)
        for update in range(3):

            def train(update: int = update) -> None:
                for part in range(2):
                    second.zero_grad()
                    mean(other, head_outside, 10 * update + part).backward()
                    second.step()

            def through(model: Any, segment: Segment, x: torch.Tensor) -> torch.Tensor:
                x = torch.tanh(model.stem(x))
                return model.head(Trains.apply(x, train))

            optimizer.zero_grad()
            mean(model, through, update).backward()
            optimizer.step()

    def ours(model: Any, shape: Any, update: int) -> torch.Tensor:
        return loss(model, shape, reentrant, (update, hvd.rank(), 0))

    run(main, aside, lambda m: wrap(sgd(m.parameters()), m), ours)

    # One process: the parts' outputs do not depend on the parameters trained aside.
    optimizer, second = sgd(main_twin.parameters()), sgd(aside_twin.parameters())
    for update in range(3):
        for part in range(2):
            second.zero_grad()
            whole(aside_twin, head_outside, 10 * update + part, 1).backward()
            second.step()
        optimizer.zero_grad()
        whole(main_twin, lambda m, _, x: m.head(torch.tanh(m.stem(x))), update, 1).backward()
        optimizer.step()
    assert_same(main, main_twin, 1e-12)
    assert_same(aside, aside_twin, 1e-12)


def check_a_backward_run_by_a_hook() -> None:
    """A hook of a parameter runs another backward; no node of the outer one comes after it."""
    model, twin = twins(Parts)
    optimizer, other = wrap(sgd(model.parameters()), model), sgd(twin.parameters())
    for update in range(2):
        optimizer.zero_grad()
        other.zero_grad()

        def more(_: Any, update: int = update) -> None:
            with torch.enable_grad():
                loss(model, head_outside, plain, (update, hvd.rank(), 1)).backward()

        leaf = torch.zeros(8, dtype=F64, requires_grad=True)
        leaf.register_post_accumulate_grad_hook(more)
        # The hook's own node is the last of this backward; the optimizer has none of its parameters.
        leaf.sum().backward()
        torch.stack([loss(twin, head_outside, plain, (update, r, 1)) for r in range(2)]).mean().backward()
        torch.testing.assert_close(model.stem.weight.grad, twin.stem.weight.grad, rtol=1e-12, atol=1e-15)
        optimizer.step()
        other.step()
    assert_same(model, twin, 1e-12)


def check_a_backward_inside_that_fails_is_forgotten() -> None:
    model, twin = twins(Parts)
    optimizer = wrap(sgd(model.parameters()), model, gradient_accumulation_steps=2)
    handle = model.stem.weight.register_hook(lambda gradient: 1 / 0)
    try:
        loss(model, head_outside, reentrant, (0, hvd.rank(), 0)).backward()
    except ZeroDivisionError:
        pass
    else:
        raise AssertionError("did not fail")
    handle.remove()
    optimizer.zero_grad()
    for m in range(2):
        loss(model, head_outside, reentrant, (1, hvd.rank(), m)).backward()
    whole(twin, head_outside, 1, 2).backward()
    torch.testing.assert_close(model.head.weight.grad, twin.head.weight.grad, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(model.stem.weight.grad, twin.stem.weight.grad, rtol=1e-12, atol=1e-15)
    optimizer.step()


def check_a_gradient_that_comes_after_its_reduction_is_told() -> None:
    """No update had a backward inside another before: the outer one has sent what the inner adds to."""
    model, _ = twins(Parts)
    optimizer = wrap(sgd(model.parameters()), model, bucket_cap_mb=1e-5)
    for segment, fails in ((plain, False), (reentrant, True), (reentrant, False)):
        optimizer.zero_grad()
        try:
            loss(model, shared_by_segments, segment, (0, hvd.rank(), 0)).backward()
        except TrainingError as error:
            assert fails
            assert "'middle." in str(error)
            assert "use_reentrant=False" in str(error)
        else:
            assert not fails
            optimizer.step()
    same_on_all_ranks(model)


def check_two_threads_with_a_model_each() -> None:
    """One backward is not taken for a part of another that runs at the same time."""
    pairs = [twins(Parts) for _ in range(2)]
    barrier = Barrier(2)

    def train(model: Any, optimizer: Any) -> None:
        optimizer.zero_grad()
        own_loss = loss(model, both_outside, plain, (1, hvd.rank(), 0))
        # Both are in the middle of their backward at once.
        model.late.weight.register_hook(lambda gradient: gradient * (barrier.wait(30) >= 0))
        own_loss.backward()

    wrapped = [wrap(sgd(m.parameters()), m, gradient_accumulation_steps=3) for m, _ in pairs]
    # Ranks compare their models here, and not from threads.
    for model, _ in pairs:
        model.head.weight.sum().backward()
    threads = [Thread(target=train, args=(m, o)) for o, (m, _) in zip(wrapped, pairs, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for optimizer, (model, twin) in zip(wrapped, pairs, strict=True):
        optimizer.synchronize()
        whole(twin, both_outside, 1, 1).backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-15)
