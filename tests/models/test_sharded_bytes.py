"""What one of several ranks allocates of the weights, and of the moments that are made from them."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from hvdtrain.core.compression.none import NoCompression
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.weights import trained
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.buckets import plan_buckets
from hvdtrain.tensorflow import flat_weights as tensorflow_weights
from hvdtrain.tensorflow import gathers as tensorflow_gathers
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.tensorflow import optimizers as tensorflow_optimizers
from hvdtrain.torch import flat_weights, gathers, optimizers
from hvdtrain.torch import model as torch_model
from tests.models.test_gradient_checkpointing import FAMILIES

FAMILY, MODEL = FAMILIES["gpt2"]
WEIGHTS = trained(FAMILY.weights(MODEL))
RANKS, RANK = 4, 1
BYTES = sum(weight.size for weight in WEIGHTS) * np.dtype(MODEL.dtype).itemsize
ADAMW = OptimizerSpec()


class Others:
    """The exchange with three ranks that have updated nothing, and are never waited for."""

    def broadcast(self, values: torch.Tensor, name: str) -> torch.Tensor:
        return values

    def count(self, sent: int) -> None:
        """Bytes are of no interest."""

    def start(self, own: torch.Tensor, name: str) -> torch.Tensor:
        return torch.empty(0)

    def gather(self, shard: Any, own: tf.Tensor, name: str) -> tf.Tensor:
        return tf.tile(own, [RANKS])


def shards_of(stage: int) -> tuple[Rules, list[Any]]:
    rules = Rules.of_spec(NoCompression(), zero_stage=stage)
    buckets = plan_buckets(WEIGHTS, 8, 4000, rules.apart, by_layer=stage == 3)
    return rules, [rules.shard(bucket, RANKS, RANK) for bucket in buckets]


def bytes_in_torch() -> int:
    gc.collect()
    storages = [
        t.untyped_storage() for t in gc.get_objects() if type(t) in (torch.Tensor, torch.nn.Parameter)
    ]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def bytes_in_tensorflow() -> int:
    gc.collect()
    variables = {v.ref() for v in gc.get_objects() if issubclass(type(v), tf.Variable)}
    return sum(v.deref().shape.num_elements() * v.deref().dtype.size for v in variables)


def near(expected: float, shards: list[Any]) -> Any:
    """Within 2 % and what shards are padded with."""
    padding = sum(shard.padded - shard.bucket.size for shard in shards) * np.dtype(MODEL.dtype).itemsize
    return pytest.approx(expected, abs=0.02 * expected + padding)


@pytest.mark.parametrize("stage", [1, 3])
def test_in_torch(stage: int) -> None:
    rules, shards = shards_of(stage)
    model = torch_model.Model(MODEL, FAMILY.weights(MODEL), empty=stage == 3)
    parameters = {w.name: model.parameters[w.name] for w in WEIGHTS}
    before, kind = bytes_in_torch(), gathers.GatheredWeights if stage == 3 else flat_weights.FlatWeights
    weights = kind(rules, shards, parameters, Others(), model.network.module)  # type: ignore[arg-type]
    held = bytes_in_torch() - before
    # Whole weights move into flat tensors, each with its padding.
    assert held == near(BYTES / RANKS if stage == 3 else 0, shards)

    optimizer = optimizers.Optimizer(ADAMW, shards, weights, Others())  # type: ignore[arg-type]
    optimizer.apply([torch.ones_like(own) for own in weights.own], 1e-3, 1)
    assert bytes_in_torch() - before - held == near(2 * BYTES / RANKS, shards)


@pytest.mark.parametrize("stage", [1, 3])
def test_in_tensorflow(stage: int) -> None:
    rules, shards = shards_of(stage)
    model = tensorflow_model.Model(MODEL, FAMILY.weights(MODEL), empty=stage == 3)
    parameters = {w.name: model.parameters[w.name] for w in WEIGHTS}
    before, given = bytes_in_tensorflow(), (rules, shards, ADAMW, parameters, Others())
    weights: Any = (
        tensorflow_gathers.GatheredWeights(*given, model.network.variables)  # type: ignore[arg-type]
        if stage == 3
        else tensorflow_weights.FlatWeights(*given)  # type: ignore[arg-type]
    )
    held = bytes_in_tensorflow() - before
    # With stage 1 they are beside the network's own.
    assert held == near(BYTES / RANKS, shards)

    optimizer = tensorflow_optimizers.Optimizer(ADAMW, shards, parameters, weights)
    assert bytes_in_tensorflow() - before - held == near(2 * BYTES / RANKS, shards)
    del optimizer
