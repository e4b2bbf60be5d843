"""What gradient checkpointing keeps of a model of equal layers (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def bytes_with_inputs_alone(
    activation_bytes: Callable[..., int], model: Any, layers: str, elements: int, *shape: int
) -> int:
    """The input of each layer, and all that one layer saves while it is computed again.

    Args:
        activation_bytes: the family's.
        model: the hyper-parameters.
        layers: the field with the number of layers.
        elements: of a layer's input, which has the weights' dtype.
        shape: what `activation_bytes` takes beside the model.
    """
    one = model.model_copy(update={layers: 1})
    inputs = elements * np.dtype(model.dtype).itemsize
    return activation_bytes(one, *shape) + (getattr(model, layers) - 1) * inputs
