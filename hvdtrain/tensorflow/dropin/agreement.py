"""Whether ranks hold the same variables, and in them the same values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import horovod.tensorflow as hvd
import numpy as np
import tensorflow as tf

from hvdtrain.core.dropin import Parameter, Settings, check_gathered, check_same, describe, digest
from hvdtrain.tensorflow.dropin.session import waiting_for_ranks
from hvdtrain.tensorflow.world import gather_bytes

# One name for every comparison: a rank that compares something else gets an error instead of waiting.
AGREEMENT = "hvdtrain.agreement"
_ADVICE = (
    "ranks must start equal: add hvdtrain.keras.callbacks.BroadcastGlobalVariables(root_rank=0) to fit's "
    "callbacks, or call hvdtrain.tensorflow.broadcast_variables(model.weights, root_rank=0), and the same "
    "for optimizer.variables"
)


def parameters_of(variables: Sequence[tf.Variable]) -> list[Parameter]:
    """What the core needs to know of TensorFlow's or Keras' variables; every name is another."""
    found: dict[str, Parameter] = {}
    for variable in variables:
        name = str(getattr(variable, "path", None) or variable.name).removesuffix(":0")
        shared = shared_name(name)
        while name in found:
            name += "'"
        dtype = tf.as_dtype(variable.dtype).name
        found[name] = Parameter(name, tuple(variable.shape), dtype, shared_name=shared)
    return list(found.values())


def check_structure(
    parameters: Sequence[Parameter],
    settings: Settings | None = None,
    options: Mapping[str, Any] | None = None,
    process_set: Any = hvd.global_process_set,
) -> None:
    """Compare names within layers, shapes, dtypes and arguments with the other ranks'; every rank calls it.

    Args:
        parameters: in their order.
        settings: of the wrapper, if any.
        options: whatever else must be equal, by the names that errors give.
        process_set: the ranks that are compared.

    Raises:
        TrainingError: on every rank alike, naming the first difference and the ranks.
    """
    mine = describe(parameters, settings, options=options)
    # Also while TensorFlow traces.
    with tf.init_scope(), waiting_for_ranks("the comparison of models"):
        check_same(mine, lambda data: gather_bytes(data, AGREEMENT, process_set), _ADVICE)


def check_values(
    variables: Sequence[tf.Variable], name: str, process_set: Any = hvd.global_process_set
) -> tf.Tensor:
    """Compare values with the other ranks', of variables whose structure is the same.

    Args:
        variables: TensorFlow's or Keras'.
        name: of the collective.
        process_set: the ranks that are compared.

    Returns:
        0, once they are known to be equal: for others to depend on, where TensorFlow traces.

    Raises:
        TrainingError: naming the first that differs, and the ranks; inside a step, TensorFlow's own error
            with that message.
    """
    parameters = parameters_of(variables)

    def describe_values(*values: np.ndarray) -> np.ndarray:
        digests = [digest(np.ascontiguousarray(value).tobytes()) for value in values]
        # A line each: ranks may have names of different lengths.
        return np.frombuffer(describe(parameters, digests=digests) + b"\n", np.uint8)

    def compare(every: np.ndarray) -> np.ndarray:
        check_gathered(every.tobytes().splitlines(), _ADVICE)
        return np.array(0, np.int32)

    values = [tf.convert_to_tensor(variable) for variable in variables]
    if tf.executing_eagerly():
        mine = describe_values(*(value.numpy() for value in values))
        return tf.constant(
            compare(hvd.allgather(tf.constant(mine), name=name, process_set=process_set).numpy())
        )
    # The collective is the graph's own: TensorFlow may run a Python function on Horovod's thread, which a
    # collective in there would wait for.
    mine = tf.ensure_shape(tf.numpy_function(describe_values, values, tf.uint8), [None])
    every = hvd.allgather(mine, name=name, process_set=process_set, ignore_name_scope=True)
    return tf.ensure_shape(tf.numpy_function(compare, [every], tf.int32), [])


def shared_name(name: str) -> str:
    """The part of a variable's name that is equal on all ranks: its name in its layer.

    A loaded model's variables lack the model's name, and Keras numbers the layers that a process has made.
    """
    return re.sub(r"_\d+$", "", name.rpartition("/")[2])
