"""What the tests of every family share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
import torch

from hvdtrain.core.data import Batch
from hvdtrain.core.families.initializers import Normal
from hvdtrain.core.families.weights import Weight, initial_weights

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
