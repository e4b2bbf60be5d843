"""How a weight's initial values are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np


class Initializer(Protocol):
    """Draws the initial values of one weight."""

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """The initial values.

        Args:
            random: a generator for this weight alone.
            shape: of the weight, in the Hugging Face layout.

        Returns:
            float64, of that shape.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """Every element has the same value."""

    value: float

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """As `Initializer.draw`."""
        del random
        return np.full(shape, self.value)


@dataclass(frozen=True)
class Normal:
    """A normal distribution of mean 0.

    Attributes:
        std: its standard deviation.
    """

    std: float

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """As `Initializer.draw`."""
        return random.normal(0.0, self.std, shape)


@dataclass(frozen=True)
class TruncatedNormal:
    """A normal distribution of mean 0; what lies beyond two standard deviations is drawn again.

    Attributes:
        std: the standard deviation before truncation, as in Keras and `torch.nn.init.trunc_normal_`.
    """

    std: float

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """As `Initializer.draw`."""
        found = random.normal(0.0, 1.0, shape)
        while (beyond := np.abs(found) > 2.0).any():
            found[beyond] = random.normal(0.0, 1.0, int(beyond.sum()))
        return self.std * found


@dataclass(frozen=True)
class Uniform:
    """A uniform distribution between -bound and bound.

    Attributes:
        bound: the largest value.
    """

    bound: float

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """As `Initializer.draw`."""
        return random.uniform(-self.bound, self.bound, shape)


@dataclass(frozen=True)
class KaimingNormal:
    """A normal distribution of mean 0 and standard deviation sqrt(2 / fan), for layers with ReLU.

    He et al. 2015, arXiv:1502.01852. A weight is (out, in, *kernel): fan_in counts the inputs of one output,
    in · kernel size; fan_out the outputs that one input has, out · kernel size.

    Attributes:
        mode: which fan.
    """

    mode: Literal["fan_in", "fan_out"] = "fan_in"

    def draw(self, random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """As `Initializer.draw`."""
        fan = shape[1 if self.mode == "fan_in" else 0] * math.prod(shape[2:])
        return random.normal(0.0, math.sqrt(2.0 / fan), shape)


ZEROS = Constant(0.0)
ONES = Constant(1.0)
