"""The core's update rules through TensorFlow's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.sections import OptimizerSpec
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.tensorflow.buckets import pack, unpack
from hvdtrain.tensorflow.weights import Parameter, Parameters, read, write


class Optimizer:
    """AdamW or SGD with momentum, one fused kernel a weight; `apply` is called while TensorFlow traces."""

    def __init__(self, spec: OptimizerSpec, buckets: Sequence[Bucket], parameters: Parameters) -> None:
        """Create the moments.

        Args:
            spec: the update rule.
            buckets: the plan's layout.
            parameters: the variables that hold each weight, by its name.
        """
        self._spec, self._buckets, self._parameters = spec, buckets, parameters
        self._moments: dict[str, tuple[Parameter, ...]] = {
            name: tuple(_zeros_like(parameter) for _ in MOMENTS[spec.type])
            for name, parameter in parameters.items()
        }

    def apply(self, gradients: Sequence[tf.Tensor], learning_rate: tf.Tensor, update: tf.Tensor) -> None:
        """One update of every weight.

        Args:
            gradients: flat, one a bucket, clipped.
            learning_rate: of this update, a scalar of the weights' dtype.
            update: its number, counted from 1, a scalar of the weights' dtype.
        """
        rule = self._adamw if self._spec.type == "adamw" else self._sgd
        for bucket, flat in zip(self._buckets, gradients, strict=True):
            found = unpack(bucket, flat, self._parameters)
            for weight in bucket.weights:
                decay = self._spec.weight_decay if weight.decays else 0.0
                pieces = zip(self._parameters[weight.name], *self._moments[weight.name], strict=True)
                for (variable, *moments), gradient in zip(pieces, found[weight.name], strict=True):
                    rule(variable, moments, gradient, decay, learning_rate, update)

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the moments as `WEIGHT.exp_avg`, in the Hugging Face layout."""
        return {
            f"{weight.name}.{name}": read(weight, moment) for weight, name, moment in self._every_moment()
        }

    def write(self, arrays: Mapping[str, np.ndarray], updates: int) -> None:
        """Set what `read` read, after so many updates."""
        del updates  # every `apply` is passed its number
        for weight, name, moment in self._every_moment():
            write(weight, moment, arrays[f"{weight.name}.{name}"])

    def _every_moment(self) -> Iterator[tuple[Weight, str, Parameter]]:
        for weight in (w for bucket in self._buckets for w in bucket.weights):
            for name, moment in zip(MOMENTS[self._spec.type], self._moments[weight.name], strict=True):
                yield weight, name, moment

    def read_weights(self) -> list[tf.Tensor]:
        """Copies of the weights, flat, one tensor a bucket."""
        return [pack(bucket, self._parameters) for bucket in self._buckets]

    def write_weights(self, weights: Sequence[tf.Tensor]) -> None:
        """Set every weight.

        Args:
            weights: flat, one a bucket.
        """
        for bucket, flat in zip(self._buckets, weights, strict=True):
            for name, parts in unpack(bucket, flat, self._parameters).items():
                for variable, part in zip(self._parameters[name], parts, strict=True):
                    variable.assign(part)

    def _adamw(
        self,
        variable: tf.Variable,
        moments: Sequence[tf.Variable],
        gradient: tf.Tensor,
        decay: float,
        rate: tf.Tensor,
        update: tf.Tensor,
    ) -> None:
        spec = self._spec
        first, second = moments
        if decay:
            variable.assign(variable * (1.0 - rate * decay))
        # ApplyAdam computes lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + eps): with this epsilon it is
        # the core's rule, whose epsilon comes after the bias correction.
        beta1_power, beta2_power = (
            tf.pow(_like(rate, spec.adam_beta1), update),
            tf.pow(_like(rate, spec.adam_beta2), update),
        )
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=first.handle,
            v=second.handle,
            beta1_power=beta1_power,
            beta2_power=beta2_power,
            lr=rate,
            beta1=_like(rate, spec.adam_beta1),
            beta2=_like(rate, spec.adam_beta2),
            epsilon=spec.adam_epsilon * tf.sqrt(1.0 - beta2_power),
            grad=gradient,
        )

    def _sgd(
        self,
        variable: tf.Variable,
        moments: Sequence[tf.Variable],
        gradient: tf.Tensor,
        decay: float,
        rate: tf.Tensor,
        update: tf.Tensor,
    ) -> None:
        del update  # plain momentum has no bias correction
        if decay:
            gradient = gradient + decay * variable
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=moments[0].handle,
            lr=rate,
            grad=gradient,
            momentum=_like(rate, self._spec.momentum),
            use_nesterov=self._spec.nesterov,
        )


def _zeros_like(parameter: Parameter) -> Parameter:
    return tuple(tf.Variable(tf.zeros_like(variable), trainable=False) for variable in parameter)


def _like(tensor: tf.Tensor, value: float) -> tf.Tensor:
    return tf.constant(value, tensor.dtype)
