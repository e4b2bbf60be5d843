"""The core's update rules through TensorFlow's kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.groups import Setting, setting_of
from hvdtrain.core.update.optimizers import trust_ratio
from hvdtrain.tensorflow.buckets import pack, unpack
from hvdtrain.tensorflow.weights import Parameter, Parameters, read, write


class Optimizer:
    """The spec's update rule, weight by weight; `apply` is called while TensorFlow traces."""

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
        for bucket, flat in zip(self._buckets, gradients, strict=True):
            found = unpack(bucket, flat, self._parameters)
            for weight in bucket.weights:
                setting = setting_of(self._spec, weight)
                factor = setting.learning_rate_factor
                rate = learning_rate if factor == 1.0 else learning_rate * factor
                self._apply(weight.name, found[weight.name], setting, rate, update)

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

    def _apply(
        self, name: str, gradients: list[tf.Tensor], setting: Setting, rate: tf.Tensor, update: tf.Tensor
    ) -> None:
        spec, parameter, decay = self._spec, self._parameters[name], setting.weight_decay
        if spec.type == "lars" and setting.adapts:
            gradients, decay = self._lars(parameter, gradients, decay), 0.0
        moments = [*zip(*self._moments[name], strict=True)]
        if spec.type == "lamb":
            self._lamb(parameter, moments, gradients, setting, rate, update)
            return
        rule = self._adamw if spec.type == "adamw" else self._sgd
        for variable, own, gradient in zip(parameter, moments, gradients, strict=True):
            rule(variable, own, gradient, decay, rate, update)

    def _lamb(
        self,
        parameter: Parameter,
        moments: Sequence[Sequence[tf.Variable]],
        gradients: Sequence[tf.Tensor],
        setting: Setting,
        rate: tf.Tensor,
        update: tf.Tensor,
    ) -> None:
        steps = [
            self._adam(own, gradient, rate, update) + setting.weight_decay * variable
            for variable, own, gradient in zip(parameter, moments, gradients, strict=True)
        ]
        if setting.adapts:
            rate = rate * trust_ratio(_norm(parameter), _norm(steps), tf.where)
        for variable, step in zip(parameter, steps, strict=True):
            variable.assign_sub(rate * step)

    def _adam(
        self, moments: Sequence[tf.Variable], gradient: tf.Tensor, rate: tf.Tensor, update: tf.Tensor
    ) -> tf.Tensor:
        """Adam's direction; TensorFlow's kernel would take it at once."""
        spec, (first, second) = self._spec, moments
        first.assign_add((1.0 - spec.adam_beta1) * (gradient - first))
        second.assign_add((1.0 - spec.adam_beta2) * (tf.square(gradient) - second))
        corrected = first / (1.0 - tf.pow(_like(rate, spec.adam_beta1), update))
        root = tf.sqrt(second / (1.0 - tf.pow(_like(rate, spec.adam_beta2), update)))
        return corrected / (root + spec.adam_epsilon)

    def _lars(self, parameter: Parameter, gradients: list[tf.Tensor], decay: float) -> list[tf.Tensor]:
        """What plain SGD is given: gradient and decay, scaled."""
        own = _norm(parameter)
        ratio = trust_ratio(own, _norm(gradients) + decay * own, tf.where, self._spec.trust_coefficient)
        return [ratio * (g + decay * v) for g, v in zip(gradients, parameter, strict=True)]

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


def _norm(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    """The L2 norm of a weight that lies in several tensors."""
    # l2_loss is half the sum of squares, in one pass that keeps no squares.
    return tf.sqrt(2.0 * tf.add_n([tf.nn.l2_loss(part) for part in parts]))


def _like(tensor: tf.Tensor, value: float) -> tf.Tensor:
    return tf.constant(value, tensor.dtype)
