"""Update rules as maths: what both adapters' kernels must compute, with a NumPy reference.

PyTorch's formulas are the definition: AdamW adds epsilon after the bias correction of the second moment
(Keras adds it before), SGD's decay is coupled and its momentum buffer carries no learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hvdtrain.core.spec.sections import OptimizerSpec

# Keeps max_norm / norm finite.
_CLIP_EPSILON = 1e-6


@dataclass(frozen=True)
class AdamWCoefficients:
    """The scalars of one AdamW update (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Attributes:
        decay: factor on decayed weights, 1 - lr * weight_decay.
        step_size: lr / (1 - beta1^t).
        denominator_scale: sqrt(1 - beta2^t); the denominator is sqrt(v) / denominator_scale + epsilon.
    """

    decay: float
    step_size: float
    denominator_scale: float


def adamw_coefficients(spec: OptimizerSpec, learning_rate: float, update: int) -> AdamWCoefficients:
    """The scalars of AdamW's update number `update` (counted from 1)."""
    return AdamWCoefficients(
        decay=1.0 - learning_rate * spec.weight_decay,
        step_size=learning_rate / (1.0 - spec.adam_beta1**update),
        denominator_scale=math.sqrt(1.0 - spec.adam_beta2**update),
    )


def clip_factor(norm: Any, max_norm: Any, least: Callable[[Any, float], Any] = min) -> Any:
    """What gradients of global norm `norm` are multiplied with: min(1, max_norm / (norm + 1e-6)).

    PyTorch's `clip_grad_norm_` has the same. Whoever clips, in either framework, asks here.

    Args:
        norm: a float, or an array or a tensor of them; finite, or no update is applied.
        max_norm: what it is not to exceed.
        least: for arrays and tensors, their own minimum of an array and a number.
    """
    return least(max_norm / (norm + _CLIP_EPSILON), 1.0)


class ReferenceOptimizer:
    """AdamW or SGD with momentum on one NumPy array: what the adapters' kernels are tested against."""

    def __init__(self, spec: OptimizerSpec, decays: bool) -> None:
        """Start with empty moments.

        Args:
            spec: the optimizer's settings.
            decays: whether weight decay applies to this array.
        """
        self._spec = spec if decays else spec.model_copy(update={"weight_decay": 0.0})
        self._updates = 0
        self._first: np.ndarray | float = 0.0
        self._second: np.ndarray | float = 0.0

    def update(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        """One update.

        Args:
            weight: any shape.
            gradient: same shape.
            learning_rate: of this update.

        Returns:
            The new weight.
        """
        self._updates += 1
        rule = self._adamw if self._spec.type == "adamw" else self._sgd
        return rule(weight, gradient, learning_rate)

    def _adamw(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        spec = self._spec
        now = adamw_coefficients(spec, learning_rate, self._updates)
        self._first = spec.adam_beta1 * self._first + (1 - spec.adam_beta1) * gradient
        self._second = spec.adam_beta2 * self._second + (1 - spec.adam_beta2) * gradient**2
        denominator = np.sqrt(self._second) / now.denominator_scale + spec.adam_epsilon
        return weight * now.decay - now.step_size * self._first / denominator

    def _sgd(self, weight: np.ndarray, gradient: np.ndarray, learning_rate: float) -> np.ndarray:
        spec = self._spec
        gradient = gradient + spec.weight_decay * weight
        self._first = spec.momentum * self._first + gradient
        step = gradient + spec.momentum * self._first if spec.nesterov else self._first
        return weight - learning_rate * step
