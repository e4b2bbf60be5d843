"""Layers that are computed again in the backward pass: the same gradients and dropout, in less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from hvdtrain.core.data import Batch
from hvdtrain.core.families import bert, gpt2, llama, resnet, vit
from hvdtrain.core.families.weights import statistics, trained
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import model as torch_model
from tests.models.peaks import LAYERS, LENGTH, ROWS, wide
from tests.models.support import as_hugging_face, batch_of, far_from_initial

FAMILIES: dict[str, tuple[Any, Any]] = {
    "bert": (
        bert,
        bert.ModelSpec(
            vocab_size=97,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=40,
            max_position_embeddings=16,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.2,
            dtype="float64",
        ),
    ),
    "gpt2": (
        gpt2,
        gpt2.ModelSpec(
            vocab_size=97,
            n_positions=16,
            n_embd=24,
            n_layer=3,
            n_head=4,
            resid_pdrop=0.2,
            embd_pdrop=0.2,
            attn_pdrop=0.2,
            dtype="float64",
        ),
    ),
    "llama": (
        llama,
        llama.ModelSpec(
            vocab_size=97,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=16,
            attention_dropout=0.2,
            dtype="float64",
        ),
    ),
    "vit": (
        vit,
        vit.ModelSpec(
            image_size=8,
            patch_size=4,
            num_channels=3,
            num_labels=5,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=40,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.2,
            dtype="float64",
        ),
    ),
    "resnet": (
        resnet,
        resnet.ModelSpec(
            image_size=16,
            num_channels=3,
            num_labels=5,
            embedding_size=6,
            hidden_sizes=(6, 8),
            depths=(2, 2),
            layer_type="basic",
            dtype="float64",
        ),
    ),
}
families = pytest.mark.parametrize("name", FAMILIES)
recomputation = pytest.mark.parametrize("whole", [True, False], ids=["whole graph", "eager"])


def batch_for(name: str, model: Any) -> Batch:
    if name in ("vit", "resnet"):
        return images_of(model)
    batch = batch_of(model)
    if name != "bert":
        return batch
    places = np.tile(np.arange(batch.targets.shape[1], dtype=np.int32), (len(batch.targets), 1))
    ids = batch.inputs["input_ids"]
    inputs = {"attention_mask": ids * 0 + 1, "token_type_ids": ids * 0, "masked_positions": places}
    return Batch({"input_ids": ids, **inputs}, batch.targets, batch.loss_weights, batch.weight, batch.counts)


def images_of(model: Any) -> Batch:
    """Five rows, of which one is beyond the data."""
    random = np.random.default_rng(5)
    pixels = random.integers(
        0, 256, (5, model.image_size, model.image_size, model.num_channels), dtype=np.uint8
    )
    labels, weights = random.integers(0, 5, (5, 1), dtype=np.int32), np.ones((5, 1))
    weights[4] = 0.0
    inputs = {"pixel_values": pixels, "pixel_scale": np.full(3, 0.01), "pixel_offset": np.full(3, -1.0)}
    return Batch(inputs, labels, weights, 4.0, {"tokens": 4, "samples": 4})


def in_torch(name: str, recompute: bool) -> tuple[float, dict[str, np.ndarray]]:
    family, spec = FAMILIES[name]
    model = torch_model.Model(spec, family.weights(spec))
    model.write(far_from_initial(family.weights(spec)))
    if recompute:
        model.network.gradient_checkpointing_enable()
    torch.manual_seed(3)
    loss = model.loss_sum(torch_model.tensors(batch_for(name, spec)), training=True)
    loss.backward()
    found = {w.name: model.parameters[w.name].grad.numpy() for w in trained(model.weights)}
    return loss.item(), found | dict(model.read(statistics(model.weights)))


def in_tensorflow(name: str, recompute: bool, whole: bool) -> tuple[list[float], dict[str, np.ndarray]]:
    """Two losses, the gradients of the second, and buffers behind it."""
    family, spec = FAMILIES[name]
    keras.utils.set_random_seed(3)
    model = tensorflow_model.Model(spec, family.weights(spec))
    model.write(far_from_initial(family.weights(spec)))
    if recompute:
        model.network.gradient_checkpointing_enable()
    batch, table = tensorflow_model.tensors(batch_for(name, spec)), trained(model.weights)

    def step() -> tuple[tf.Tensor, Any]:
        with tf.GradientTape() as tape:
            loss = model.loss_sum(batch, training=True)
        return loss, tape.gradient(loss, {w.name: model.parameters[w.name] for w in table})

    step = tf.function(step, autograph=False) if whole else step
    (first, _), (second, gradients) = step(), step()
    found = {w.name: as_hugging_face(w, gradients[w.name]) for w in table}
    return [float(first), float(second)], found | dict(model.read(statistics(model.weights)))


@families
def test_gradients_are_those_of_a_whole_forward_pass_in_torch(name: str) -> None:
    (loss, expected), (again, found) = in_torch(name, False), in_torch(name, True)
    assert loss == again
    for weight, gradient in expected.items():
        np.testing.assert_array_equal(found[weight], gradient, err_msg=weight)


@families
@recomputation
def test_gradients_are_those_of_a_whole_forward_pass_in_tensorflow(name: str, whole: bool) -> None:
    (losses, expected), (again, found) = (
        in_tensorflow(name, recompute, whole) for recompute in (False, True)
    )
    assert (losses[0] != losses[1]) == (name != "resnet")
    np.testing.assert_allclose(again, losses, rtol=1e-14)
    for weight, gradient in expected.items():
        scale = max(np.abs(gradient).max(), 1e-3)
        np.testing.assert_allclose(found[weight], gradient, rtol=0, atol=1e-13 * scale, err_msg=weight)


@pytest.mark.parametrize("framework", ["torch", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_memory_hardly_grows_with_the_layers(framework: str) -> None:
    # Large blocks are given back at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tests.models.peaks", framework]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, recomputed, kept = json.loads(done.stdout.splitlines()[-1])
    model, shape = wide(LAYERS), (ROWS, LENGTH, LENGTH - 1, 4)
    whole, less = gpt2.activation_bytes(model, *shape), gpt2.checkpointed_bytes(model, *shape)
    # TensorFlow's attention keeps its scores, which PyTorch's does not.
    assert kept - recomputed > 0.7 * (whole - less), (one, recomputed, kept)
    assert recomputed - one < 0.2 * (kept - recomputed), (one, recomputed, kept)
