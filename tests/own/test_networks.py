"""What of users' modules is trained, saved and resumed, and how their inputs reach them."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from safetensors.torch import load_model, save_file
from torch import nn

from hvdtrain.core.families.custom import ModelSpec
from hvdtrain.core.families.weights import statistics, trained
from hvdtrain.core.run.own_job import OwnCode, own_spec
from hvdtrain.core.tasks.custom import make_batch
from hvdtrain.tensorflow.families.custom import Network as KerasNetwork
from hvdtrain.tensorflow.model import build_network as build_keras
from hvdtrain.torch.families.custom import Network as TorchNetwork
from hvdtrain.torch.model import Model as TorchModel
from hvdtrain.torch.model import build_network as build_torch

ARRAYS = {"x": np.ones((2, 6)), "labels": np.zeros(2, np.int64)}
SPEC: dict[str, Any] = {"batch": {"per_device_train_batch_size": 4}, "max_steps": 5}


def network(framework: str, build: Any, arrays: dict[str, Any] = ARRAYS, **model: Any) -> Any:
    """A network as a job builds it; the sample is a batch of two."""
    spec = own_spec({**SPEC, "model": {"dtype": "float64", **model}}, framework, OwnCode(build))
    batch = make_batch({name: np.asarray(a) for name, a in arrays.items()}, spec.task)  # type: ignore[arg-type]
    return (build_torch if framework == "torch" else build_keras)(spec, batch)


def kinds(found: TorchNetwork | KerasNetwork) -> dict[str, str]:
    """What each weight is."""
    changed = {w.name for w in statistics(found.weights)}
    return {
        w.name: "trained" if not w.buffer else "statistic" if w.name in changed else "frozen"
        for w in found.weights
    }


def test_lazy_layers_learn_their_shapes_from_a_sample() -> None:
    found = network("torch", lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3)))
    assert {w.name: w.shape for w in trained(found.weights)} == {
        "0.weight": (4, 6),
        "0.bias": (4,),
        "1.weight": (4,),
        "1.bias": (4,),
        "2.weight": (3, 4),
        "2.bias": (3,),
    }
    assert all(p.dtype == torch.float64 for p in found.module.parameters())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


def test_tied_weights_are_one(tmp_path: Any) -> None:
    found = network("torch", Tied, {"x": np.zeros((2, 3), int), "labels": np.zeros((2, 3), int)})
    assert kinds(found) == {"table.weight": "trained"}
    arrays = dict(TorchModel(ModelSpec(dtype="float64"), found.weights, network=found).read())
    save_file({n: torch.from_numpy(a) for n, a in arrays.items()}, tmp_path / "model.safetensors")
    outside = Tied().double()
    load_model(outside, tmp_path / "model.safetensors")
    assert torch.equal(outside.head.weight, found.module.table.weight)


def test_a_keras_layer_that_is_used_twice_is_one() -> None:
    def build() -> keras.Model:
        x, layer = keras.Input((6,), name="x"), layers.Dense(6, name="layer")
        return keras.Model(x, layer(layer(x)))

    assert kinds(network("tensorflow", build)) == {"layer/kernel": "trained", "layer/bias": "trained"}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(4, 3)

    def forward(self, b: torch.Tensor, a: torch.Tensor, mask: Any = None) -> torch.Tensor:
        assert mask is None or mask.dtype == torch.bool
        return self.left(a) + self.right(b)


def two_inputs() -> keras.Model:
    b, a = keras.Input((4,), name="b"), keras.Input((2,), name="a")
    return keras.Model([b, a], layers.Add()([layers.Dense(3)(a), layers.Dense(3)(b)]))


class TwoInputs(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = layers.Dense(3), layers.Dense(3)

    def call(self, b: Any, a: Any) -> Any:
        return self.left(a) + self.right(b)


@pytest.mark.parametrize(
    ("framework", "build"),
    [("torch", Two), ("torch", partial(Two)), ("tensorflow", two_inputs), ("tensorflow", TwoInputs)],
)
def test_inputs_go_to_the_model_by_name(framework: str, build: Any) -> None:
    a, b = np.ones((2, 2)), np.ones((2, 4))
    for arrays in ({"a": a, "b": b}, {"b": b, "a": a}):
        found = network(framework, build, {**arrays, "labels": np.zeros(2, int)})
        assert {w.shape for w in found.weights if len(w.shape) > 1} == (
            {(3, 2), (3, 4)} if framework == "torch" else {(2, 3), (4, 3)}
        )
        make = torch.from_numpy if framework == "torch" else tf.constant
        assert found.outputs({n: make(x) for n, x in arrays.items()}, training=True).shape == (2, 3)


@pytest.mark.parametrize(("framework", "build"), [("torch", Two), ("tensorflow", two_inputs)])
def test_elements_of_tuples_go_to_it_by_place(framework: str, build: Any) -> None:
    found = network(
        framework, build, {"0": np.ones((2, 4)), "1": np.ones((2, 2)), "labels": np.zeros(2, int)}
    )
    make = torch.from_numpy if framework == "torch" else tf.constant
    inputs = {"0": make(np.ones((2, 4))), "1": make(np.ones((2, 2)))}
    assert found.outputs(inputs, training=False).shape == (2, 3)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_one_input_has_its_name_or_the_models(framework: str) -> None:
    class Embedded(nn.Module if framework == "torch" else keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3) if framework == "torch" else layers.Dense(3)

        def forward(self, ids: Any = None, embeddings: Any = None) -> Any:
            assert ids is None
            return self.head(embeddings)

        call = forward

    found = network(framework, Embedded, {"embeddings": np.ones((2, 6)), "labels": np.zeros(2, int)})
    make = torch.from_numpy if framework == "torch" else tf.constant
    assert found.outputs({"embeddings": make(np.ones((2, 6)))}, training=False).shape == (2, 3)


@pytest.mark.filterwarnings("error::UserWarning")
def test_one_input_of_a_sequence_of_layers_may_have_any_name() -> None:
    network("torch", lambda: nn.Sequential(nn.LazyLinear(3)))
    network("tensorflow", lambda: keras.Sequential([keras.Input((6,)), layers.Dense(3)]))


def test_masks_stay_booleans() -> None:
    arrays = {"a": np.ones((2, 2)), "b": np.ones((2, 4)), "mask": np.ones((2, 4), bool)}
    network("torch", Two, {**arrays, "labels": np.zeros(2, int)})

    class Masked(Two):
        def forward(self, a: Any, b: Any, mask: Any) -> Any:
            return super().forward(b.masked_fill(~mask, 0.0), a, mask)

    spec = own_spec(SPEC, "torch", OwnCode(Masked))
    batch = make_batch({**arrays, "labels": np.zeros(2, int)}, spec.task)  # type: ignore[arg-type]
    build_torch(spec, batch)
    from hvdtrain.torch.model import tensors

    assert tensors(batch)["mask"].dtype == torch.bool
    assert tensors(batch)["targets"].dtype == torch.int64


def test_frozen_parameters_and_statistics_are_told_apart_in_pytorch() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.norm, self.head = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
            self.base.requires_grad_(False)
            self.register_buffer("own", torch.zeros(2))
            self.register_buffer("scratch", torch.zeros(2), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.base(x)))

    assert kinds(network("torch", Net)) == {
        "base.weight": "frozen",
        "base.bias": "frozen",
        "norm.weight": "trained",
        "norm.bias": "trained",
        "head.weight": "trained",
        "head.bias": "trained",
        "own": "statistic",
        "norm.running_mean": "statistic",
        "norm.running_var": "statistic",
        "norm.num_batches_tracked": "statistic",
    }


def test_frozen_layers_statistics_and_random_states_are_told_apart_in_keras() -> None:
    class Noise(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.generator = keras.random.SeedGenerator(1)

        def call(self, x: Any, training: bool = False) -> Any:
            return x + keras.random.normal(x.shape, seed=self.generator, dtype=x.dtype) if training else x

    class Net(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.norm = layers.Dense(4, name="base"), layers.BatchNormalization(name="norm")
            self.noise, self.dropout, self.head = Noise(), layers.Dropout(0.5), layers.Dense(3, name="head")
            self.base.trainable = False

        def call(self, x: Any, training: bool = False) -> Any:
            x = self.noise(self.norm(self.base(x), training=training), training=training)
            return self.head(self.dropout(x, training=training))

    found = network("tensorflow", Net)
    assert kinds(found) == {
        "net/base/kernel": "frozen",
        "net/base/bias": "frozen",
        "net/norm/gamma": "trained",
        "net/norm/beta": "trained",
        "net/norm/moving_mean": "statistic",
        "net/norm/moving_variance": "statistic",
        "net/head/kernel": "trained",
        "net/head/bias": "trained",
    }
    inputs = {"x": tf.ones((2, 6), tf.float64)}
    one, two = (found.outputs(inputs, training=True) for _ in range(2))
    assert np.any(one != two)
    one, two = (found.outputs(inputs, training=False) for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_the_folder_says_which_code_builds_the_model() -> None:
    spec = own_spec(SPEC, "torch", OwnCode(Two))
    assert json.loads(spec.model_dump_json())["model"]["torch"].endswith("test_networks:Two")
