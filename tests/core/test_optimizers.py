"""Update rules: the NumPy reference against PyTorch's optimizers, and both adapters against the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.families.initializers import ONES, ZEROS, Normal
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.sections import OptimizerSpec
from hvdtrain.core.update.buckets import Bucket, plan_buckets
from hvdtrain.core.update.optimizers import ReferenceOptimizer, clip_factor
from hvdtrain.core.update.schedules import schedule_factor
from hvdtrain.tensorflow.optimizers import Optimizer as TensorFlowOptimizer
from hvdtrain.torch.optimizers import Optimizer as TorchOptimizer

UPDATES = 50
WEIGHTS = (
    Weight("embedding", (7, 4), True, Normal(0.02)),
    Weight("norm.weight", (4,), False, ONES),
    Weight("norm.bias", (4,), False, ZEROS),
    Weight("kernel", (4, 3), True, Normal(0.02)),
    Weight("bias", (3,), False, ZEROS),
)
# Of 15 elements, some of which decay; of 8, none; of 28, all.
BUCKETS = plan_buckets(WEIGHTS, itemsize=8, cap_bytes=15 * 8)
SPECS = {
    "adamw": OptimizerSpec(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-3),
    "adamw-without-decay": OptimizerSpec(weight_decay=0.0),
    "adamw-defaults": OptimizerSpec(),
    "sgd": OptimizerSpec(type="sgd", weight_decay=0.1, momentum=0.9),
    "sgd-nesterov": OptimizerSpec(type="sgd", weight_decay=0.1, momentum=0.9, nesterov=True),
    "sgd-without-momentum": OptimizerSpec(type="sgd", weight_decay=0.1, momentum=0.0),
}
Arrays = dict[str, np.ndarray]

every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def start() -> Arrays:
    random = np.random.default_rng(1)
    return {weight.name: random.normal(size=weight.shape) for weight in WEIGHTS}


def gradients(update: int) -> Arrays:
    """Gradients of many sizes; some are exactly 0, as those of rows that a batch did not use."""
    random = np.random.default_rng(1000 + update)
    found = {w.name: random.normal(size=w.shape) * 10.0 ** random.integers(-6, 2) for w in WEIGHTS}
    found["embedding"][random.integers(0, 7, 3)] = 0.0
    return found


def learning_rate(update: int) -> float:
    return 0.05 * schedule_factor("cosine", update - 1, 10, UPDATES)


def by_reference(spec: OptimizerSpec) -> Arrays:
    now, rules = start(), {w.name: ReferenceOptimizer(spec, w.decays) for w in WEIGHTS}
    for update in range(1, UPDATES + 1):
        given = gradients(update)
        now = {
            name: rule.update(now[name], given[name], learning_rate(update)) for name, rule in rules.items()
        }
    return now


def flat(bucket: Bucket, arrays: Arrays) -> np.ndarray:
    return np.concatenate([arrays[weight.name].ravel() for weight in bucket.weights])


def assert_equal(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)
        assert array.dtype == np.float64


@every_spec
def test_the_reference_computes_what_pytorchs_optimizers_do(spec: OptimizerSpec) -> None:
    weights = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in start().items()}
    groups: list[dict[str, Any]] = [
        {"params": [weights[w.name] for w in WEIGHTS if w.decays], "weight_decay": spec.weight_decay},
        {"params": [weights[w.name] for w in WEIGHTS if not w.decays], "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if spec.type == "adamw":
        betas = (spec.adam_beta1, spec.adam_beta2)
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=spec.adam_epsilon)
    else:
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=spec.momentum, nesterov=spec.nesterov)
    for update in range(1, UPDATES + 1):
        for name, gradient in gradients(update).items():
            weights[name].grad = torch.from_numpy(gradient)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update)
        optimizer.step()
    assert_equal({name: w.detach().numpy() for name, w in weights.items()}, by_reference(spec))


@every_spec
def test_the_torch_adapter_computes_the_reference(spec: OptimizerSpec) -> None:
    weights = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in start().items()}
    optimizer = TorchOptimizer(spec, BUCKETS, weights)
    for update in range(1, UPDATES + 1):
        given = gradients(update)
        parts = [torch.from_numpy(flat(bucket, given)) for bucket in BUCKETS]
        optimizer.apply(parts, learning_rate(update), update)
    assert_equal({name: w.detach().numpy() for name, w in weights.items()}, by_reference(spec))


@every_spec
def test_the_tensorflow_adapter_computes_the_reference(spec: OptimizerSpec) -> None:
    weights = {name: (tf.Variable(array),) for name, array in start().items()}
    optimizer = TensorFlowOptimizer(spec, BUCKETS, weights)
    apply = tf.function(optimizer.apply, autograph=False)
    for update in range(1, UPDATES + 1):
        given = gradients(update)
        parts = [tf.constant(flat(bucket, given)) for bucket in BUCKETS]
        apply(parts, tf.constant(learning_rate(update), tf.float64), tf.constant(float(update), tf.float64))
    assert_equal({name: w.numpy() for name, (w,) in weights.items()}, by_reference(spec))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9), st.floats(1e-3, 1e3))
def test_clipping_is_pytorchs(values: list[float], max_norm: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(len(values), dtype=torch.float64))
    parameter.grad = torch.tensor(values, dtype=torch.float64)
    norm = torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    # As each that clips has its numbers: float, array, and a tensor of either framework.
    factors = [
        clip_factor(float(norm), max_norm),
        clip_factor(np.array(float(norm)), max_norm, np.minimum),
        clip_factor(norm, max_norm, torch.clamp_max).item(),
        clip_factor(tf.constant(float(norm), tf.float64), max_norm, tf.minimum).numpy(),
    ]
    for factor in factors:
        np.testing.assert_allclose(np.array(values) * factor, parameter.grad.numpy(), rtol=1e-12)
