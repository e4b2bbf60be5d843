"""A weight in this framework's variables, and as an array in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from hvdtrain.core.families.weights import Weight

# What holds one weight, perhaps in several variables, and what holds each by its Hugging Face name.
Parameter: TypeAlias = tuple[tf.Variable, ...]
Parameters: TypeAlias = Mapping[str, Parameter]


def read(weight: Weight, parameter: Parameter) -> np.ndarray:
    """A copy of what a parameter holds, in the Hugging Face layout."""
    return weight.layout.join([variable.numpy() for variable in parameter], weight.shape)


def write(weight: Weight, parameter: Parameter, array: np.ndarray) -> None:
    """Set a parameter from an array in the Hugging Face layout."""
    for variable, part in zip(parameter, weight.layout.split(array), strict=True):
        variable.assign(part.reshape(tuple(variable.shape)))
