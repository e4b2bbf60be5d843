"""Update rules: the NumPy reference against PyTorch's optimizers, and both adapters against the reference."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.initializers import ONES, ZEROS, Normal
from hvdtrain.core.families.weights import TRANSPOSED, Layout, Weight
from hvdtrain.core.spec.optimizer_sections import GroupSpec, OptimizerSpec, ScheduleSpec
from hvdtrain.core.update.buckets import Bucket, plan_buckets
from hvdtrain.core.update.optimizers import ReferenceOptimizer, clip_factor
from hvdtrain.core.update.schedules import schedule_factor
from hvdtrain.core.update.shards import Shard
from hvdtrain.tensorflow.buckets import swap_layout
from hvdtrain.tensorflow.flat_weights import FlatWeights as TensorFlowFlatWeights
from hvdtrain.tensorflow.optimizers import Optimizer as TensorFlowOptimizer
from hvdtrain.tensorflow.weights import read
from hvdtrain.torch.flat_weights import FlatWeights
from hvdtrain.torch.optimizers import Optimizer as TorchOptimizer

UPDATES = 50
WEIGHTS = (
    Weight("embedding", (7, 4), True, Normal(0.02)),
    Weight("norm.weight", (4,), False, ONES),
    Weight("norm.bias", (4,), False, ZEROS),
    Weight("kernel", (4, 3), True, Normal(0.02)),
    Weight("bias", (3,), False, ZEROS),
    Weight("turned", (3, 2), True, Normal(0.02), TRANSPOSED),
    # One weight, and three variables in Keras.
    Weight("fused.weight", (2, 6), True, Normal(0.02), Layout(parts=3)),
    Weight("fused.bias", (6,), False, ZEROS, Layout(parts=3)),
)
BUCKETS = plan_buckets(WEIGHTS, itemsize=8, cap_bytes=30 * 8)
SHARDS = [Shard.whole(bucket) for bucket in BUCKETS]
GROUPS = (
    GroupSpec(match="fused.*", learning_rate_factor=0.5, weight_decay=0.3),
    GroupSpec(match="embedding", learning_rate_factor=0.25),
    GroupSpec(match="*norm*", learning_rate_factor=0.0),
    GroupSpec(match="norm.bias", weight_decay=9.0),
)
SPECS = {
    "adamw": OptimizerSpec(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-3),
    "adamw-without-decay": OptimizerSpec(weight_decay=0.0),
    "adamw-defaults": OptimizerSpec(),
    "sgd": OptimizerSpec(type="sgd", weight_decay=0.1, momentum=0.9),
    "sgd-nesterov": OptimizerSpec(type="sgd", weight_decay=0.1, momentum=0.9, nesterov=True),
    "sgd-without-momentum": OptimizerSpec(type="sgd", weight_decay=0.1, momentum=0.0),
    "adamw-groups": OptimizerSpec(weight_decay=0.1, groups=GROUPS),
    "sgd-groups": OptimizerSpec(type="sgd", weight_decay=0.1, groups=GROUPS),
}
# Only the adapters have them: PyTorch has neither.
MORE = {
    "lamb": OptimizerSpec(type="lamb", weight_decay=0.1, adam_epsilon=1e-6),
    "lamb-without-decay": OptimizerSpec(type="lamb", weight_decay=0.0, adam_beta2=0.95),
    "lamb-groups": OptimizerSpec(type="lamb", weight_decay=0.1, groups=GROUPS),
    "lars": OptimizerSpec(type="lars", weight_decay=0.1, trust_coefficient=0.1),
    "lars-nesterov": OptimizerSpec(type="lars", weight_decay=0.0, trust_coefficient=0.1, nesterov=True),
    "lars-without-momentum": OptimizerSpec(type="lars", trust_coefficient=0.1, momentum=0.0),
    "lars-groups": OptimizerSpec(type="lars", trust_coefficient=0.1, groups=GROUPS),
}
Arrays = dict[str, np.ndarray]

of_pytorch = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
every_spec = pytest.mark.parametrize("spec", [*SPECS.values(), *MORE.values()], ids=[*SPECS, *MORE])


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
    return 0.05 * schedule_factor(ScheduleSpec(type="cosine"), update - 1, 10, UPDATES, 0.05)


def by_reference(spec: OptimizerSpec) -> Arrays:
    now, rules = start(), {w.name: ReferenceOptimizer(spec, w) for w in WEIGHTS}
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


def grouped(spec: OptimizerSpec, weight: Weight) -> tuple[float, float]:
    """Learning-rate factor and decay of a weight, by hand."""
    decay = spec.weight_decay if weight.decays else 0.0
    if not spec.groups:
        return 1.0, decay
    found = {"fused": (0.5, 0.3), "embedding": (0.25, decay), "norm": (0.0, decay)}
    return found.get(weight.name.partition(".")[0], (1.0, decay))


@of_pytorch
def test_the_reference_computes_what_pytorchs_optimizers_do(spec: OptimizerSpec) -> None:
    weights = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in start().items()}
    groups: list[dict[str, Any]] = [
        {"params": [weights[w.name]], "factor": factor, "weight_decay": decay}
        for w, (factor, decay) in ((w, grouped(spec, w)) for w in WEIGHTS)
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
            group["lr"] = learning_rate(update) * group["factor"]
        optimizer.step()
    assert_equal({name: w.detach().numpy() for name, w in weights.items()}, by_reference(spec))


@every_spec
def test_the_torch_adapter_computes_the_reference(spec: OptimizerSpec) -> None:
    weights = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in start().items()}
    optimizer = TorchOptimizer(spec, SHARDS, in_flats(weights))
    for update in range(1, UPDATES + 1):
        given = gradients(update)
        parts = [torch.from_numpy(flat(bucket, given)) for bucket in BUCKETS]
        optimizer.apply(parts, learning_rate(update), update)
    assert_equal({name: w.detach().numpy() for name, w in weights.items()}, by_reference(spec))


@every_spec
def test_the_tensorflow_adapter_computes_the_reference(spec: OptimizerSpec) -> None:
    begun = start()
    weights = {w.name: tuple(tf.Variable(part) for part in w.layout.split(begun[w.name])) for w in WEIGHTS}
    optimizer = TensorFlowOptimizer(spec, SHARDS, weights)
    apply = tf.function(optimizer.apply, autograph=False)
    for update in range(1, UPDATES + 1):
        given = gradients(update)
        parts = [swap_layout(bucket, tf.constant(flat(bucket, given)), to_keras=True) for bucket in BUCKETS]
        apply(parts, tf.constant(learning_rate(update), tf.float64), tf.constant(float(update), tf.float64))
    assert_equal({w.name: read(w, weights[w.name]) for w in WEIGHTS}, by_reference(spec))


@given(
    st.sampled_from([(3,), (2, 3), (4, 1), (2, 2, 2)]),
    st.floats(1e-3, 1e3),
    st.floats(0.0, 0.5),
    st.integers(0, 2**32 - 1),
)
def test_a_step_of_lamb_is_as_long_as_its_share_of_the_weight(
    shape: tuple[int, ...], scale: float, decay: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    weight = Weight("w", shape, True, ZEROS)
    spec = OptimizerSpec(type="lamb", weight_decay=decay, adam_epsilon=1e-30)
    now, gradient = random.normal(size=shape) + 0.1, random.normal(size=shape)
    rules = [ReferenceOptimizer(spec, weight) for _ in range(2)]
    for _ in range(3):
        one, other = (r.update(now, gradient * s, 0.01) for r, s in zip(rules, (1.0, scale), strict=True))
        np.testing.assert_allclose(one, other, rtol=1e-9)
        if len(shape) > 1:
            length = np.linalg.norm((one - now).ravel())
            assert length == pytest.approx(0.01 * np.linalg.norm(now.ravel()), rel=1e-9)
        now, gradient = one, random.normal(size=shape)


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_lamb_without_decay_is_keras_on_matrices(epsilon: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    now = random.normal(size=(3, 4))
    rule = ReferenceOptimizer(
        OptimizerSpec(type="lamb", weight_decay=0.0, adam_epsilon=epsilon), Weight("w", (3, 4), True, ZEROS)
    )
    variable = keras.Variable(now, dtype="float64")
    theirs = keras.optimizers.Lamb(learning_rate=0.01, epsilon=epsilon)
    for _ in range(4):
        gradient = random.normal(size=(3, 4))
        now = rule.update(now, gradient, 0.01)
        theirs.apply([tf.constant(gradient)], [variable])
    # Their learning rate and powers of beta are float32.
    np.testing.assert_allclose(now, variable.numpy(), rtol=1e-4, atol=1e-7)


@given(st.floats(0.0, 0.9), st.floats(0.0, 0.5), st.integers(0, 2**32 - 1))
def test_lars_is_the_papers(momentum: float, decay: float, seed: int) -> None:
    """Algorithm 1, whose momentum carries the learning rate: the same while that is constant."""
    random = np.random.default_rng(seed)
    now, velocity = random.normal(size=(3, 4)), np.zeros((3, 4))
    spec = OptimizerSpec(type="lars", weight_decay=decay, momentum=momentum, trust_coefficient=0.02)
    rule, expected = ReferenceOptimizer(spec, Weight("w", (3, 4), True, ZEROS)), now
    for _ in range(5):
        gradient = random.normal(size=(3, 4))
        local = (
            0.02 * np.linalg.norm(expected) / (np.linalg.norm(gradient) + decay * np.linalg.norm(expected))
        )
        velocity = momentum * velocity + 0.3 * local * (gradient + decay * expected)
        expected = expected - velocity
        now = rule.update(now, gradient, 0.3)
    np.testing.assert_allclose(now, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("kind", "like"), [("lamb", "adamw"), ("lars", "sgd")])
@given(st.integers(0, 2**32 - 1))
def test_vectors_and_what_has_no_length_have_no_trust_ratio(kind: Any, like: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    for shape, begun in [((5,), random.normal(size=5)), ((2, 3), np.zeros((2, 3)))]:
        gradient, weight = random.normal(size=shape), Weight("w", shape, True, ZEROS)
        ours, plain = (
            ReferenceOptimizer(OptimizerSpec(type=each, weight_decay=0.0), weight) for each in (kind, like)
        )
        expected = plain.update(begun, gradient, 0.1)
        np.testing.assert_allclose(ours.update(begun, gradient, 0.1), expected, rtol=1e-14)


@every_spec
def test_the_reference_updates_ranks_independently(spec: OptimizerSpec) -> None:
    random = np.random.default_rng(5)
    for weight in WEIGHTS:
        begun, given = random.normal(size=(2, 3, *weight.shape))
        rule, now = ReferenceOptimizer(spec, weight), begun
        apart, alone = [ReferenceOptimizer(spec, weight) for _ in begun], [*begun]
        for _ in range(3):
            now = rule.update(now, given, 0.1)
            alone = [r.update(*work, 0.1) for r, *work in zip(apart, alone, given, strict=True)]
        np.testing.assert_allclose(now, np.stack(alone), rtol=1e-12)


@every_spec
@pytest.mark.parametrize("update", [1, 7])
def test_moments_go_from_one_framework_to_the_other(spec: OptimizerSpec, update: int) -> None:
    begun = start()
    held = {w.name: tuple(tf.Variable(part) for part in w.layout.split(begun[w.name])) for w in WEIGHTS}
    weights, copies = in_flats(), in_flats()
    first, then = TorchOptimizer(spec, SHARDS, weights), TensorFlowOptimizer(spec, SHARDS, held)
    back = TorchOptimizer(spec, SHARDS, copies)
    for number in range(1, update + 1):
        first.apply([torch.from_numpy(flat(b, gradients(number))) for b in BUCKETS], 0.1, number)
    then.write(first.read(), update)
    back.write(then.read(), update)
    for (name, array), *others in zip(first.read(), then.read(), back.read(), strict=True):
        assert [other for other, _ in others] == [name, name]
        for _, other in others:
            np.testing.assert_array_equal(other, array, err_msg=name)
    copies.replace(weights.own)
    for each in (first, back):
        each.apply([torch.from_numpy(flat(b, gradients(9))) for b in BUCKETS], 0.1, update + 1)
    for one, other in zip(weights.own, copies.own, strict=True):
        assert torch.equal(one, other)


def in_flats(parameters: dict[str, torch.nn.Parameter] | None = None) -> FlatWeights:
    """The first weights, or these, as the torch adapter holds them."""
    if parameters is None:
        parameters = {name: torch.nn.Parameter(torch.from_numpy(array)) for name, array in start().items()}
    return FlatWeights(Rules(()), SHARDS, parameters)


class Alone:
    """The exchange of a rank that owns everything."""

    def __init__(self) -> None:
        self.gathered: list[int] = []

    def gather(self, shard: Any, own: Any, name: str) -> Any:
        assert name == "moments"
        self.gathered.append(shard.bucket.index)
        return own


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_bucket_is_gathered_only_when_its_moments_are_read(framework: str) -> None:
    exchange: Any = Alone()
    if framework == "torch":
        optimizer: Any = TorchOptimizer(OptimizerSpec(), SHARDS, in_flats(), exchange)
    else:
        held = {w.name: tuple(tf.Variable(part) for part in w.layout.split(start()[w.name])) for w in WEIGHTS}
        shards = TensorFlowFlatWeights(Rules(()), SHARDS, OptimizerSpec(), held, exchange)
        optimizer = TensorFlowOptimizer(OptimizerSpec(), SHARDS, held, shards)
    names = [
        (f"{weight.name}.{moment}", bucket.index)
        for bucket in BUCKETS
        for moment in ("exp_avg", "exp_avg_sq")
        for weight in bucket.weights
    ]
    random = np.random.default_rng(2)
    moments = {f"{w.name}.{m}": random.random(w.shape) for w in WEIGHTS for m in ("exp_avg", "exp_avg_sq")}
    taken: list[str] = []
    # One after the other, without a look at what comes next.
    optimizer.write(((taken.append(name) or name, moments[name]) for name, _ in names), 1)
    assert taken == [name for name, _ in names]
    expected: list[int] = []
    for (name, array), (asked, bucket) in zip(optimizer.read(), names, strict=True):
        if asked == f"{BUCKETS[bucket].weights[0].name}.{asked.rpartition('.')[2]}":
            expected.append(bucket)
        assert (name, exchange.gathered) == (asked, expected)
        np.testing.assert_array_equal(array, moments[name])


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 40])
def test_a_rank_takes_its_part_of_a_moment(ranks: int) -> None:
    random = np.random.default_rng(3)
    moments = {f"{weight.name}.exp_avg": random.random(weight.shape) for weight in WEIGHTS}
    for bucket in BUCKETS:
        size = -(-bucket.size // ranks)
        names = [f"{weight.name}.exp_avg" for weight in bucket.weights]
        whole = np.concatenate([*(moments[name].ravel() for name in names), np.zeros(ranks * size)])
        for rank in range(ranks):
            found = Shard(bucket, ranks, rank, size).take("exp_avg", ((n, moments[n]) for n in names))
            np.testing.assert_array_equal(found, whole[rank * size :][:size])
    with pytest.raises(ValueError, match=rf"expected {BUCKETS[0].weights[0].name}.exp_avg, found other"):
        SHARDS[0].take("exp_avg", iter([("other", np.zeros(3))]))


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
