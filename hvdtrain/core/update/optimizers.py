"""Update rules as maths: what both adapters' kernels must compute, with a NumPy reference.

PyTorch's formulas are the definition: AdamW adds epsilon after the bias correction of the second moment
(Keras adds it before), SGD's decay is coupled and its momentum buffer carries no learning rate. LAMB is
AdamW's, and LARS SGD's, with the step of each weight of two axes or more scaled by the weight's trust ratio.
The norms are those of a whole weight in the Hugging Face layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.update.groups import setting_of

# Keeps max_norm / norm finite.
_CLIP_EPSILON = 1e-6


def clip_factor(norm: Any, max_norm: Any, least: Callable[[Any, float], Any] = min) -> Any:
    """What gradients of global norm `norm` are multiplied with: min(1, max_norm / (norm + 1e-6)).

    PyTorch's `clip_grad_norm_` has the same. Whoever clips, in either framework, asks here.

    Args:
        norm: a float, or an array or a tensor of them; finite, or no update is applied.
        max_norm: what it is not to exceed.
        least: for arrays and tensors, their own minimum of an array and a number.
    """
    return least(max_norm / (norm + _CLIP_EPSILON), 1.0)


def trust_ratio(
    weight_norm: Any, step_norm: Any, where: Callable[[Any, Any, Any], Any], coefficient: float = 1.0
) -> Any:
    """What a weight's step is multiplied with: coefficient * weight_norm / step_norm; 1 where either is 0.

    Args:
        weight_norm: L2 norms of weights, an array or a tensor.
        step_norm: of their steps.
        where: the framework's choice between two values by a condition.
        coefficient: how large a step is to be, as a share of its weight.
    """
    defined = (weight_norm > 0.0) & (step_norm > 0.0)
    return where(defined, coefficient * weight_norm / where(defined, step_norm, 1.0), 1.0)


class ReferenceOptimizer:
    """One weight's updates in NumPy: what the adapters' kernels are tested against."""

    def __init__(self, spec: OptimizerSpec, weight: Weight) -> None:
        """Start with empty moments.

        Args:
            spec: the optimizer's settings.
            weight: whose name, shape and decay decide what of them it has.
        """
        self._spec, self._setting = spec, setting_of(spec, weight)
        self._axes = tuple(range(-len(weight.shape), 0))
        self._updates = 0
        self._first: np.ndarray | float = 0.0
        self._second: np.ndarray | float = 0.0

    def update(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        """One update.

        Args:
            weight: (..., *shape of the weight); what lies along axes before it is updated independently.
            gradient: same shape.
            learning_rate: of this update.

        Returns:
            The new weight.
        """
        self._updates += 1
        rules = {"adamw": self._adamw, "sgd": self._sgd, "lamb": self._lamb, "lars": self._lars}
        return rules[self._spec.type](weight, gradient, learning_rate * self._setting.learning_rate_factor)

    def _adamw(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        decayed = weight * (1.0 - learning_rate * self._setting.weight_decay)
        return decayed - learning_rate * self._adam(gradient)

    def _lamb(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        step = self._adam(gradient) + self._setting.weight_decay * weight
        return weight - learning_rate * self._trust(self._norm(weight), self._norm(step)) * step

    def _adam(self, gradient: np.ndarray) -> np.ndarray:
        """Adam's direction: the first moment over the root of the second, both corrected for their start."""
        spec, count = self._spec, self._updates
        self._first = spec.adam_beta1 * self._first + (1 - spec.adam_beta1) * gradient
        self._second = spec.adam_beta2 * self._second + (1 - spec.adam_beta2) * gradient**2
        root = np.sqrt(self._second) / math.sqrt(1.0 - spec.adam_beta2**count)
        return self._first / (1.0 - spec.adam_beta1**count) / (root + spec.adam_epsilon)

    def _sgd(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        return self._momentum(weight, gradient + self._setting.weight_decay * weight, learning_rate)

    def _lars(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        decay, norm = self._setting.weight_decay, self._norm(weight)
        ratio = self._trust(norm, self._norm(gradient) + decay * norm, self._spec.trust_coefficient)
        return self._momentum(weight, ratio * (gradient + decay * weight), learning_rate)

    def _momentum(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        spec = self._spec
        self._first = spec.momentum * self._first + gradient
        step = gradient + spec.momentum * self._first if spec.nesterov else self._first
        return weight - learning_rate * step

    def _trust(self, weight_norm: np.ndarray, step_norm: np.ndarray, coefficient: float = 1.0) -> Any:
        if not self._setting.adapts:
            return 1.0
        return trust_ratio(weight_norm, step_norm, np.where, coefficient)

    def _norm(self, array: np.ndarray) -> np.ndarray:
        return np.sqrt(np.sum(np.square(array), axis=self._axes, keepdims=True))
