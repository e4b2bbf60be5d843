"""Whether ranks hold the same variables, and in them the same values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.dropin import Parameter, Settings, check_gathered, check_same, describe, digest
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


def check_values(variables: Sequence[tf.Variable], name: str) -> tf.Tensor:
    """Compare values with the other ranks', of variables whose structure is the same.

    Args:
        variables: TensorFlow's or Keras'.
        name: of the collective.

    Returns:
        0, once they are known to be equal: for others to depend on, where TensorFlow traces.

    Raises:
        TrainingError: naming the first that differs, and the ranks; inside a step, TensorFlow's own error
            with that message.
    """
    parameters = _renamed(parameters_of(variables))

    def describe_values(*values: np.ndarray) -> np.ndarray:
        digests = [digest(np.ascontiguousarray(value).tobytes()) for value in values]
        return np.frombuffer(describe(parameters, digests=digests), np.uint8)

    def compare(every: np.ndarray) -> np.ndarray:
        check_gathered([part.tobytes() for part in np.split(every, hvd.size())], _ADVICE)
        return np.array(0, np.int32)

    values = [tf.convert_to_tensor(variable) for variable in variables]
    if tf.executing_eagerly():
        mine = describe_values(*(value.numpy() for value in values))
        return tf.constant(compare(hvd.allgather(tf.constant(mine), name=name).numpy()))
    # The collective is the graph's own: TensorFlow may run a Python function on Horovod's thread, which a
    # collective in there would wait for.
    mine = tf.ensure_shape(tf.numpy_function(describe_values, values, tf.uint8), [None])
    every = hvd.allgather(mine, name=name, ignore_name_scope=True)
    return tf.ensure_shape(tf.numpy_function(compare, [every], tf.int32), [])


def without_numbers(text: str) -> str:
    """Names as they would be in a process that had built no other layers before: Keras numbers them."""
    return re.sub(r"_\d+(?=[/'\"]|$)", "", text)


def _renamed(parameters: Sequence[Parameter]) -> list[Parameter]:
    return [replace(p, name=without_numbers(p.name)) for p in parameters]
