"""What the tests of every family share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf
import torch

from hvdtrain.core.families.initializers import Normal
from hvdtrain.core.families.weights import Weight, initial_weights


def far_from_initial(weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Every weight drawn, biases and layer norms too, so that none can be mistaken for another."""
    return initial_weights([replace(w, initial=Normal(0.3)) for w in weights], seed=3, dtype="float64")


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
