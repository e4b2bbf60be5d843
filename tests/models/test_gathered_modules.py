"""Modules of PyTorch that have whole weights only while they use them (ZeRO-3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight, statistics, trained
from hvdtrain.core.update.buckets import plan_buckets
from hvdtrain.core.update.gathers import plan_gathers
from hvdtrain.torch import losses
from hvdtrain.torch import model as torch_model
from hvdtrain.torch.gathers import GatheredWeights
from hvdtrain.torch.placeholders import is_empty
from tests.models.support import far_from_initial
from tests.models.test_gathered_weights import MODELS
from tests.models.test_gradient_checkpointing import batch_for, recomputation

RULES = Rules.of_spec(NoCompression(), zero_stage=3)


class Alone:
    """The exchange of a rank that owns everything."""

    def __init__(self) -> None:
        self.gathered: list[int] = []

    def broadcast(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return values.clone()

    def count(self, sent: int) -> None:
        """Bytes are of no interest."""

    def start(self, own: torch.Tensor, name: str) -> torch.Tensor:
        self.gathered.append(int(name.removeprefix("weights.bucket")))
        return own.clone()

    def finish(self, handle: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return handle


def gather(module: torch.nn.Module, weights: Any, parameters: Any, **layout: Any) -> tuple[Any, Any, Alone]:
    """A module whose weights are gathered, the plan of that, and the exchange that it is done by."""
    buckets = plan_buckets(weights, 8, 4000, RULES.apart, by_layer=True)
    shards, exchange = [RULES.shard(bucket, 1, 0) for bucket in buckets], Alone()
    held = GatheredWeights(RULES, shards, parameters, exchange, module)  # type: ignore[arg-type]
    return held, plan_gathers(buckets), exchange


def compute(name: str, gathers: bool, recompute: bool) -> tuple[float, dict[str, np.ndarray]]:
    family, spec = MODELS[name]
    table = family.weights(spec)
    model = torch_model.Model(spec, table, empty=gathers)
    parameters = {w.name: model.parameters[w.name] for w in trained(table)}
    if gathers:
        model.held, plan, exchange = gather(model.network.module, trained(table), parameters)
    if recompute:
        model.network.gradient_checkpointing_enable()
    model.write(far_from_initial(table))
    batch = torch_model.tensors(batch_for(name.partition(" ")[0], spec))
    torch.manual_seed(3)
    loss = model.loss_sum(batch, training=True)
    loss.backward()
    if gathers:
        assert tuple(exchange.gathered) == plan.buckets
        assert all(is_empty(parameter) for parameter in parameters.values() if parameter.numel() > 1)
    found = {weight: parameter.grad.numpy() for weight, parameter in parameters.items()}
    if buffers := statistics(table):
        found |= dict(model.read(buffers))
    return loss.item(), found


@pytest.mark.parametrize("name", MODELS)
@recomputation
def test_gradients_and_dropout_are_those_of_whole_weights(name: str, whole: bool) -> None:
    (expected_loss, expected), (found_loss, found) = (
        compute(name, gathers, recompute=not whole) for gathers in (False, True)
    )
    assert found_loss == expected_loss
    for weight, gradient in expected.items():
        np.testing.assert_array_equal(found[weight], gradient, err_msg=weight)


@pytest.mark.parametrize("name", ["bert", "gpt2 untied"])
def test_a_head_that_is_computed_part_by_part_is_gathered_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "chunks", lambda predictions, classes: [2, predictions - 2])
    test_gradients_and_dropout_are_those_of_whole_weights(name, whole=True)


class Attending(torch.nn.Module):
    """Uses the weights of a module that it does not call, as PyTorch's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0) for _ in range(4))
        self.attention = torch.nn.MultiheadAttention(8, 2)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(self.attention(x, x, x)[0])


def own(module: torch.nn.Module) -> tuple[list[Weight], dict[str, Any]]:
    parameters = dict(module.named_parameters())
    return [Weight(n, tuple(p.shape), True, ZEROS, custom=True) for n, p in parameters.items()], parameters


@pytest.mark.parametrize("training", [True, False])
def test_modules_that_use_weights_of_others_inside_a_layer(training: bool) -> None:
    """In evaluation, PyTorch computes a whole encoder layer at once."""
    torch.manual_seed(1)
    module, x = Attending().double().train(training), torch.randn(5, 2, 8, dtype=torch.float64)
    with torch.set_grad_enabled(training):
        expected = module(x)
        if training:
            expected.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
        for parameter in module.parameters():
            parameter.grad = None
        weights, parameters = own(module)
        held, _, _ = gather(module, weights, parameters)
        with held.in_use(training):
            found = module(x)
    # No more than the layer in use and the next one.
    assert len(held._whole) + len(held._coming) <= 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    if training:
        found.square().sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-12, atol=1e-12)


class Borrowing(torch.nn.Module):
    """Uses the weights of another layer behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.middle(self.embed(x)), self.embed.weight)


def test_nothing_is_computed_with_weights_that_are_not_there() -> None:
    module = Borrowing()
    held, _, _ = gather(module, *own(module))
    with held.in_use(training=True):
        assert module(torch.arange(3)).isnan().all()
