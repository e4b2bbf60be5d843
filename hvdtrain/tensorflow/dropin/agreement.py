"""Whether ranks hold the same variables, and in them the same values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from hvdtrain.core.dropin import Parameter, Settings, check_same, describe, digest
from hvdtrain.tensorflow.dropin.messages import gather_bytes

_ADVICE = (
    "weights must start equal: add hvdtrain.keras.callbacks.BroadcastGlobalVariables(root_rank=0) to fit's "
    "callbacks, or call hvdtrain.tensorflow.broadcast_variables(model.weights, root_rank=0)"
)


def parameters_of(variables: Sequence[tf.Variable]) -> list[Parameter]:
    """What the core needs to know of TensorFlow's or Keras' variables; every name is another."""
    found: dict[str, Parameter] = {}
    for variable in variables:
        name = str(getattr(variable, "path", None) or variable.name).removesuffix(":0")
        while name in found:
            name += "'"
        found[name] = Parameter(name, tuple(variable.shape), tf.as_dtype(variable.dtype).name)
    return list(found.values())


def check_structure(parameters: Sequence[Parameter], settings: Settings | None = None) -> None:
    """Compare names, shapes, dtypes and settings with the other ranks'; every rank calls it.

    Raises:
        TrainingError: on every rank alike, naming the first difference and the ranks.
    """
    check_same(describe(_renamed(parameters), settings), gather_bytes, _ADVICE)


def check_values(parameters: Sequence[Parameter], values: Sequence[np.ndarray]) -> None:
    """Compare values as well; arguments in the same order, errors as `check_structure`."""
    digests = [digest(np.ascontiguousarray(value).tobytes()) for value in values]
    check_same(describe(_renamed(parameters), digests=digests), gather_bytes, _ADVICE)


def without_numbers(text: str) -> str:
    """Names as they would be in a process that had built no other layers before: Keras numbers them."""
    return re.sub(r"_\d+(?=[/'\"]|$)", "", text)


def _renamed(parameters: Sequence[Parameter]) -> list[Parameter]:
    return [replace(p, name=without_numbers(p.name)) for p in parameters]
