"""The core's update rules through TensorFlow's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from hvdtrain.core.buckets import Bucket
from hvdtrain.core.sections import OptimizerSpec
from hvdtrain.core.state import MOMENTS
from hvdtrain.core.weights import Weight
from hvdtrain.models import bert


class Optimizer:
    """AdamW or SGD with momentum, one fused kernel a weight; `apply` is called while TensorFlow traces."""

    def __init__(
        self, spec: OptimizerSpec, buckets: Sequence[Bucket], parameters: Mapping[str, tf.Variable]
    ) -> None:
        """Create the moments.

        Args:
            spec: the update rule.
            buckets: the plan's layout.
            parameters: by weight name.
        """
        self._spec, self._buckets, self._parameters = spec, buckets, parameters
        self._moments = {
            name: [tf.Variable(tf.zeros_like(variable), trainable=False) for _ in MOMENTS[spec.type]]
            for name, variable in parameters.items()
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
            for weight, part in zip(bucket.weights, tf.split(flat, bucket.sizes), strict=True):
                variable = self._parameters[weight.name]
                decay = self._spec.weight_decay if weight.decays else 0.0
                rule(weight.name, variable, tf.reshape(part, variable.shape), decay, learning_rate, update)

    def read(self) -> dict[str, np.ndarray]:
        """Copies of the moments as `WEIGHT.exp_avg`, in the Hugging Face layout."""
        return {
            f"{weight.name}.{moment}": bert.from_keras(weight, variable.numpy())
            for weight, moment, variable in self._variables()
        }

    def write(self, arrays: Mapping[str, np.ndarray], updates: int) -> None:
        """Set what `read` read, after so many updates."""
        del updates  # told anew at every `apply`
        for weight, moment, variable in self._variables():
            array = arrays[f"{weight.name}.{moment}"]
            variable.assign(bert.to_keras(weight, array, tuple(variable.shape)))

    def _variables(self) -> Iterator[tuple[Weight, str, tf.Variable]]:
        for weight in (w for bucket in self._buckets for w in bucket.weights):
            for moment, variable in zip(MOMENTS[self._spec.type], self._moments[weight.name], strict=True):
                yield weight, moment, variable

    def read_weights(self) -> list[tf.Tensor]:
        """Copies of the weights, flat, one tensor a bucket."""
        return [
            tf.concat([tf.reshape(self._parameters[w.name], [-1]) for w in bucket.weights], 0)
            for bucket in self._buckets
        ]

    def write_weights(self, weights: Sequence[tf.Tensor]) -> None:
        """Set every weight.

        Args:
            weights: flat, one a bucket.
        """
        for bucket, flat in zip(self._buckets, weights, strict=True):
            for weight, part in zip(bucket.weights, tf.split(flat, bucket.sizes), strict=True):
                variable = self._parameters[weight.name]
                variable.assign(tf.reshape(part, variable.shape))

    def _adamw(
        self,
        name: str,
        variable: tf.Variable,
        gradient: tf.Tensor,
        decay: float,
        rate: tf.Tensor,
        update: tf.Tensor,
    ) -> None:
        spec = self._spec
        first, second = self._moments[name]
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
        name: str,
        variable: tf.Variable,
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
            accum=self._moments[name][0].handle,
            lr=rate,
            grad=gradient,
            momentum=_like(rate, self._spec.momentum),
            use_nesterov=self._spec.nesterov,
        )


def _like(tensor: tf.Tensor, value: float) -> tf.Tensor:
    return tf.constant(value, tensor.dtype)
