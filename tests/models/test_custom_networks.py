"""Users' models as users write them, and what is said where a model, its data and its loss do not fit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from torch import nn

import hvdtrain.tensorflow.model as in_tensorflow
import hvdtrain.torch.model as in_torch
from hvdtrain.core.data import Batch
from hvdtrain.core.errors import DataError, SpecError
from hvdtrain.core.families.custom import ModelSpec
from hvdtrain.core.tasks.custom import TaskSpec
from hvdtrain.tensorflow.families.custom import Network as KerasNetwork
from hvdtrain.torch.families.custom import Network as TorchNetwork

Model = in_torch.Model | in_tensorflow.Model
X = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)


def batch(labels: Any = (0, 1, 2, 0), **inputs: Any) -> Batch:
    targets = np.array(labels)
    weights = (targets != -100).astype(np.float64)
    return Batch(inputs or {"0": X}, targets, weights, weights.sum(), {"samples": 4, "tokens": 4})


def keras_model(build: Callable[[], Any], task: TaskSpec | None = None, **inputs: Any) -> in_tensorflow.Model:
    spec = ModelSpec(tensorflow=build)
    example = {name: tf.constant(each) for name, each in (inputs or {"0": X}).items()}
    network = KerasNetwork(spec, "float32", example)
    return in_tensorflow.Model(spec, network.weights, network=network, task=task or TaskSpec())


def torch_model(build: Callable[[], Any], task: TaskSpec | None = None) -> in_torch.Model:
    spec = ModelSpec(torch=build)
    network = TorchNetwork(spec, "float32", {"0": torch.from_numpy(X)})
    return in_torch.Model(spec, network.weights, network=network, task=task or TaskSpec())


class Returns(nn.Module):
    """A linear layer, and whatever `made` makes of its output."""

    def __init__(self, made: Callable[[Any], Any]) -> None:
        super().__init__()
        self.linear, self.made = nn.Linear(10, 3), made

    def forward(self, x: torch.Tensor) -> Any:
        return self.made(self.linear(x))


class KerasReturns(keras.Model):
    """The same."""

    def __init__(self, made: Callable[[Any], Any]) -> None:
        super().__init__()
        self.dense, self.made = layers.Dense(3), made

    def call(self, x: tf.Tensor) -> Any:
        return self.made(self.dense(x))


def both(made: Callable[[Any], Any] = lambda x: x) -> list[Model]:
    # Also that a partial may build a model.
    return [torch_model(partial(Returns, made)), keras_model(partial(KerasReturns, made))]


@pytest.mark.parametrize(
    "made", [lambda x: None, lambda x: {"out": x}, lambda x: (), lambda x: "abc", lambda x: (None, x)]
)
def test_outputs_that_no_named_loss_takes(made: Callable[[Any], Any]) -> None:
    for model in both(made):
        with pytest.raises(SpecError, match=r"model: it returned .*logits"):
            model.examine(model.tensors(batch()))


@pytest.mark.parametrize("label", [3, -1, 250])
def test_a_label_that_is_no_class(label: int) -> None:
    for model in both():
        with pytest.raises(DataError, match=rf"3 classes, and a label is {label}; expected 0 to 2"):
            model.examine(model.tensors(batch([0, 1, label, 0])))
        # Whatever comes later is looked at before it reaches a compiled step, or a GPU.
        fine = both()[0] if isinstance(model, in_torch.Model) else both()[1]
        fine.examine(fine.tensors(batch([0, 1, 2, -100])))
        with pytest.raises(DataError, match=f"a label is {label}"):
            fine.tensors(batch([0, 1, label, 0]))


@pytest.mark.parametrize("labels", [[[0], [1], [2], [0]], np.eye(3, dtype=int)[[0, 1, 2, 0]]])
def test_labels_with_an_axis_too_many(labels: Any) -> None:
    for model in both():
        with pytest.raises(SpecError, match=r"or labels of shape \(4,\): numbers of classes"):
            model.examine(model.tensors(batch(labels)))


def test_masks_stay_booleans() -> None:
    mask = np.array([True, False, True, True])
    waves = np.ones(4, np.complex64)
    for model in both():
        found = model.tensors(batch(mask=mask, waves=waves))
        assert found["mask"].dtype in (torch.bool, tf.bool)
        assert found["waves"].dtype in (torch.complex64, tf.complex64)


def test_numbers_that_cannot_be_trained() -> None:
    def complex_parameter() -> nn.Module:
        model = nn.Linear(10, 3)
        model.phase = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
        return model

    with pytest.raises(SpecError, match=r"phase is torch\.complex64; expected real numbers"):
        torch_model(complex_parameter)
    with pytest.raises(SpecError, match=r"weight is on the device meta"):
        torch_model(lambda: nn.Linear(10, 3, device="meta"))
    with pytest.raises(SpecError, match=r"kernel is float16, and model\.dtype is float32"):
        keras_model(lambda: keras.Sequential([layers.Dense(3, dtype="float16")]))


def test_scalars_are_read_and_written() -> None:
    def adapted() -> keras.Model:
        normalization = layers.Normalization()
        normalization.adapt(X)
        return keras.Sequential([normalization, layers.Dense(3)])

    model = keras_model(adapted)
    (count,) = [weight for weight in model.weights if weight.name.endswith("count")]
    assert count.shape == ()
    values = dict(model.read())
    assert isinstance(values[count.name], np.ndarray)
    model.write({count.name: np.array(7, values[count.name].dtype)})
    assert dict(model.read([count]))[count.name] == 7


def test_generators_of_keras_layers_are_no_weights() -> None:
    def augmenting() -> keras.Model:
        image = [layers.Reshape((10, 1, 1)), layers.RandomFlip(), layers.RandomRotation(0.1)]
        return keras.Sequential([*image, layers.Flatten(), layers.Dropout(0.1), layers.Dense(3)])

    names = [weight.name.rpartition("/")[2] for weight in keras_model(augmenting).weights]
    assert names == ["kernel", "bias"]


def test_tuples_are_positional_arguments_of_a_subclassed_model() -> None:
    class Two(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, left: tf.Tensor, right: tf.Tensor, training: bool = False) -> tf.Tensor:
            return self.dense(left - 2 * right)

    def functional() -> keras.Model:
        left, right = keras.Input((10,)), keras.Input((10,))
        return keras.Model([left, right], layers.Dense(3)(left - 2 * right))

    parts = {"0": X, "1": X + 1}
    found = []
    for build in (Two, functional):
        model = keras_model(build, **parts)
        model.write({w.name: np.full(w.shape, 0.5, np.float32) for w in model.weights})
        found.append(model.network.outputs({n: tf.constant(x) for n, x in parts.items()}, training=False))
    np.testing.assert_array_equal(*found)
    np.testing.assert_allclose(
        found[0], ((X - 2 * (X + 1)).sum(1) * 0.5 + 0.5)[:, None] * np.ones(3), rtol=1e-5
    )


def run(program: str, folder: Path) -> str:
    command = [sys.executable, str(Path(__file__).with_name("programs.py")), program, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_that_has_used_tensorflow_before(tmp_path: Path) -> None:
    assert "TensorFlow was used before training has started" in run("used_before", tmp_path)


def test_an_embedding_with_sparse_gradients(tmp_path: Path) -> None:
    run("sparse", tmp_path)


def test_a_metric_that_fails_is_told_before_training(tmp_path: Path) -> None:
    run("bad_metric", tmp_path)
