"""A user's own `keras.Model`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.custom import ModelSpec, build, by_place, check_weights, in_order_of_names
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import SAME, TRANSPOSED, Layout, Weight
from hvdtrain.core.spec.reference import describe
from hvdtrain.core.user_code import user_code
from hvdtrain.keras_models.layers import LEAVES
from hvdtrain.tensorflow.weights import Parameters

# Arguments of `call` that are no inputs.
_OF_KERAS = {"training", "mask"}
_POLICIES = {"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}
# (*kernel, in, out) here, (out, in, *kernel) there.
_KERNELS: dict[type[keras.layers.Layer], Layout] = {
    keras.layers.Dense: TRANSPOSED,
    keras.layers.Conv1D: Layout(axes=(2, 1, 0)),
    keras.layers.Conv2D: Layout(axes=(2, 3, 1, 0)),
    keras.layers.Conv3D: Layout(axes=(2, 3, 4, 1, 0)),
}


class Network:
    """The model that `model.tensorflow` builds; weights are called as its variables, or as in PyTorch."""

    def __init__(self, model: ModelSpec, compute_dtype: str, example: Mapping[str, tf.Tensor]) -> None:
        """Build the model.

        Args:
            model: the section of the spec.
            compute_dtype: of matrix products.
            example: inputs of one sample, with which lazy layers learn their shapes.

        Raises:
            SpecError: the user's code fails, or returns something else than a model that can be trained.
        """
        self._what = f"model.tensorflow: {describe(model.tensorflow)}"
        # Keras numbers layers without a name: a program's second run of a model finds the names of its first.
        keras.utils.clear_session(free_memory=False)
        keras.config.set_floatx(model.dtype)
        keras.config.set_dtype_policy(_POLICIES.get(compute_dtype, model.dtype))
        module = build(model, "tensorflow")
        if not isinstance(module, keras.Model):
            raise SpecError(f"{self._what} returned a {type(module).__name__}; expected a keras.Model")
        self._dtype = tf.as_dtype(model.dtype)
        self.module = module
        # Without `**kwargs`: those of Keras' own models are no inputs.
        arguments = inspect.signature(module.call).parameters
        self._arguments = {n: each for n, each in arguments.items() if each.kind is not each.VAR_KEYWORD}
        self._places = sum(
            each.kind is each.POSITIONAL_OR_KEYWORD and name not in _OF_KERAS
            for name, each in self._arguments.items()
        )
        self.outputs(example, training=False)
        self._refuse_losses()
        layouts = _layouts(module) if model.names is not None else {}
        # Without the states of random generators, which are each rank's own.
        variables, frozen = module.weights, _frozen(module)
        self._refuse_dtypes(variables, model.dtype)
        found = [_weight(variable, model.names, layouts, variable.path in frozen) for variable in variables]
        self.weights = tuple(found) if model.names is None else in_order_of_names(found, model.names)
        check_weights(model, "tensorflow", self.weights)
        self._variables = {
            weight.name: (variable.value,) for weight, variable in zip(found, variables, strict=True)
        }

    @property
    def parameters(self) -> Parameters:
        """What holds each weight now."""
        return self._variables

    def outputs(self, inputs: Mapping[str, tf.Tensor], training: bool) -> Any:
        """What the model returns.

        Args:
            inputs: tensors by the names of the model's arguments, or by their positions (`0`, `1`, ...).
            training: whether dropout is on, and statistics are those of the batch.
        """
        given = {n: tf.cast(t, self._dtype) if t.dtype.is_floating else t for n, t in inputs.items()}
        with user_code(f"{self._what}: the forward pass", self.module, SpecError):
            if by_place(given, self._arguments):
                values: list[Any] = [*given.values()]
                # A functional model takes one list, a subclassed one may take several arguments.
                if len(values) > 1 and self._places < len(values):
                    values = [values]
                return self.module(*values, training=training)
            if given.keys() <= self._arguments.keys():
                return self.module(**given, training=training)
            return self.module(given, training=training)

    def _refuse_dtypes(self, variables: list[keras.Variable], dtype: str) -> None:
        for variable in variables:
            if variable.trainable and variable.dtype != dtype:
                raise SpecError(
                    f"{self._what}: {variable.path} is {variable.dtype}, and model.dtype is {dtype}: give "
                    "its layer no dtype, so that it follows the spec (model.dtype, mixed_precision)"
                )

    def _refuse_losses(self) -> None:
        if self.module.losses:
            raise SpecError(
                f"{self._what}: its layers add losses of their own (regularizers, add_loss), which are not "
                "part of the sum that ranks share: leave them out and set optimizer.weight_decay, or compute "
                "them in a loss function (task.loss)"
            )


def _frozen(module: keras.Model) -> set[str]:
    """The paths of weights that were made to be trained, and are not."""
    made = (variable for layer in module._flatten_layers() for variable in layer._trainable_variables)
    return {variable.path for variable in made if not variable.trainable}


def _layouts(module: keras.Model) -> dict[str, Layout]:
    """How kernels lie here, by their path."""
    return {
        layer.kernel.path: layout
        for layer in module._flatten_layers()
        for kind, layout in _KERNELS.items()
        if type(layer) is kind
    }


def _weight(
    variable: keras.Variable, names: Mapping[str, str] | None, layouts: Mapping[str, Layout], frozen: bool
) -> Weight:
    path, shape = variable.path, tuple(variable.shape)
    buffer = not variable.trainable
    if names is None:
        return Weight(path, shape, len(shape) > 1, ZEROS, buffer=buffer, frozen=frozen, custom=True)
    layer, _, leaf = path.rpartition("/")
    module = next((name for name, other in names.items() if other == layer), None)
    if module is None:
        raise SpecError(f"model.names: no module stands for the layer {layer!r}, which holds {leaf!r}")
    if leaf not in LEAVES or (leaf == "kernel" and path not in layouts):
        raise SpecError(
            f"model.names: {path!r} has no counterpart in PyTorch that is known; layers that can be matched "
            "are Dense, Conv1D to Conv3D, Embedding and the normalizations"
        )
    layout = layouts.get(path, SAME)
    theirs = tuple(shape[axis] for axis in layout.inverse) if layout.axes else shape
    name = f"{module}.{LEAVES[leaf]}"
    return Weight(name, theirs, len(shape) > 1, ZEROS, layout, buffer=buffer, frozen=frozen, custom=True)
