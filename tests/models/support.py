"""What the tests of every family share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from hvdtrain.core.data import Batch
from hvdtrain.core.families.initializers import Normal
from hvdtrain.core.families.weights import Weight, initial_weights
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import model as torch_model

LENGTH = 12
# Where the second of two documents in a row starts, and the inputs that tell it.
BORDERS = (5, 9, 2)
DOCUMENTS = ("document_ids", "position_ids")


def far_from_initial(weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Every weight drawn, biases and layer norms too, so that none can be mistaken for another."""
    return initial_weights([replace(w, initial=Normal(0.3)) for w in weights], seed=3, dtype="float64")


def batch_of(model: Any, documents: tuple[str, ...] = ()) -> Batch:
    """Three rows for causal_lm, perhaps of two documents each, told by these inputs; some losses weigh 0."""
    random = np.random.default_rng(5)
    ids = random.integers(0, model.vocab_size, (3, LENGTH), dtype=np.int32)
    weights = random.integers(0, 2, (3, LENGTH - 1)).astype(np.float64)
    inputs = {"input_ids": ids}
    if documents:
        places = np.arange(LENGTH)
        second = places >= np.array(BORDERS)[:, None]
        told = {"document_ids": second, "position_ids": places - second * np.array(BORDERS)[:, None]}
        inputs |= {name: told[name].astype(np.int32) for name in documents}
    return Batch(inputs, ids[:, 1:], weights, weights.sum(), {"tokens": ids.size, "samples": 3})


def as_hugging_face(weight: Weight, gradients: Sequence[Any]) -> np.ndarray:
    """The gradients of a weight's Keras variables as one array in the Hugging Face layout."""
    return weight.layout.join([tf.convert_to_tensor(g).numpy() for g in gradients], weight.shape)


def bytes_saved(forward: Callable[[], object], own: Sequence[torch.Tensor]) -> int:
    """What autograd saves in a forward pass: tensors of floats that were not there before."""
    before = {tensor.untyped_storage().data_ptr() for tensor in own}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in before and tensor.is_floating_point():
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


def check_products_in_16_bits(
    exact: Any, ours: Any, theirs: Any, batch: Batch, compute: str, without: tuple[str, ...] = ()
) -> None:
    """Losses and gradients of both frameworks are those of float32, but for the rounding of products.

    Args:
        exact: a PyTorch model in float32.
        ours: one with products in 16 bits, and the same weights.
        theirs: the same in TensorFlow.
        batch: of any task.
        compute: the type of products.
        without: endings of the names of weights whose gradient is rounding alone.
    """
    loss = exact.loss_sum(torch_model.tensors(batch), training=True)
    loss.backward()
    mine = ours.loss_sum(torch_model.tensors(batch), training=True)
    mine.backward()
    with tf.GradientTape() as tape:
        found = theirs.loss_sum(tensorflow_model.tensors(batch), training=True)
    rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[compute]
    losses = [mine.item(), float(found)]
    assert losses == pytest.approx([loss.item()] * 2, rel=rounding)
    assert loss.item() not in losses, "16 bits must be seen somewhere"
    in_16_bits = torch.tensor(losses).to(getattr(torch, compute)).tolist()
    assert not {*losses} & {*in_16_bits}, "the sum is taken in 32 bits"
    gradients = tape.gradient(found, theirs.parameters)
    for weight in (each for each in exact.weights if not each.name.endswith(without)):
        expected = exact.parameters[weight.name].grad.numpy()
        both = ours.parameters[weight.name].grad.numpy(), as_hugging_face(weight, gradients[weight.name])
        scale = max(float(np.linalg.norm(expected)), 1e-3)
        for gradient in both:
            assert gradient.dtype == np.float32
            assert np.linalg.norm(gradient - expected) < 10 * rounding * scale, weight.name
