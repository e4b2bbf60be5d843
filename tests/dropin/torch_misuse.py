"""Mistakes that all ranks make, or that all ranks learn of: each must be told. Run on 2 ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import hvdtrain.torch as hvd
from hvdtrain.core.errors import HvdtrainError
from tests.dropin.trial import batch, mean_loss, mlp, own, sgd, wrap


def told(words: tuple[str, ...], act: Callable[[], Any]) -> None:
    try:
        act()
    except HvdtrainError as error:
        for word in words:
            assert word in str(error), (word, str(error))
    else:
        raise AssertionError(f"nothing was said of {words}")


def wrapped(model: torch.nn.Module, **arguments: Any) -> Any:
    return wrap(sgd(model.parameters()), model, **arguments)


def backward(model: torch.nn.Module) -> None:
    own(model, 0).backward()


def check_step_without_backward() -> None:
    model = mlp()
    optimizer = wrapped(model)
    told(("optimizer.step()", "backward()"), optimizer.step)
    backward(model)
    optimizer.step()
    told(("optimizer.step()", "call step() once"), optimizer.step)
    backward(model)
    optimizer.step()


def check_weights_that_were_not_broadcast() -> None:
    model = mlp()
    if hvd.rank() == 1:
        model[2].bias.data += 1e-9
    optimizer = wrapped(model)
    told(("'2.bias'", "rank 1", "hvdtrain.torch.broadcast_parameters"), lambda: backward(model))
    optimizer.zero_grad()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    backward(model)
    optimizer.step()


def check_other_options_of_the_optimizer_on_one_rank() -> None:
    model = mlp()
    for options, words in (
        ({"lr": 0.1 * (1 + hvd.rank())}, ("lr of group 0 is 0.1 on rank 0, but 0.2 on rank 1",)),
        ({"lr": 0.1, "momentum": 0.5 * hvd.rank()}, ("momentum of group 0",)),
    ):
        optimizer = wrap(torch.optim.SGD(model.parameters(), **options), model)
        told(words, lambda: backward(model))
        optimizer.zero_grad()
    kind = torch.optim.Adam if hvd.rank() else torch.optim.AdamW
    optimizer = wrap(kind(model.parameters(), lr=0.1), model)
    told(("optimizer is 'AdamW' on rank 0, but 'Adam' on rank 1",), lambda: backward(model))
    optimizer.zero_grad()


def check_another_model_on_one_rank() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(6, 8 + hvd.rank()), torch.nn.Linear(8 + hvd.rank(), 3)
    ).double()
    told(
        ("'0.weight'", "[8, 6]", "[9, 6]", "same model"), lambda: hvd.broadcast_parameters(model.state_dict())
    )
    wrapped(model)
    told(("'0.weight'", "[8, 6]", "[9, 6]", "same model"), lambda: backward(model))
    extra = torch.nn.ModuleDict({"a": mlp()} | ({"b": mlp()} if hvd.rank() else {}))
    told(("missing on rank 0", "'b.0.weight'"), lambda: hvd.broadcast_parameters(extra.state_dict()))


def check_other_arguments_on_one_rank() -> None:
    model = mlp()
    wrapped(model, gradient_accumulation_steps=1 + hvd.rank())
    told(("gradient_accumulation_steps", "1 on rank 0", "2 on rank 1"), lambda: backward(model))


def check_samples_that_were_not_said() -> None:
    model = mlp()
    wrapped(model, average="samples")
    told(("batch_samples", "before each backward()"), lambda: backward(model))


def check_wrapping_twice() -> None:
    model = mlp()
    optimizer = wrapped(model)
    told(("wrapped already",), lambda: hvd.DistributedOptimizer(optimizer, model.named_parameters()))


def check_a_dtype_that_cannot_be_reduced() -> None:
    model = torch.nn.Linear(2, 2, dtype=torch.complex64)
    told(("'weight'", "complex64"), lambda: wrapped(model))


def check_residuals_with_a_grad_scaler() -> None:
    model = mlp(torch.float32)
    optimizer = wrapped(
        model, compression={"type": "powersgd", "start_powerSGD_iter": 0, "min_compression_rate": 0.1}
    )
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(mean_loss(model, *batch((0, 0, 0), 2, torch.float32))).backward()
    told(("GradScaler", "use_error_feedback: false"), lambda: scaler.step(optimizer))
