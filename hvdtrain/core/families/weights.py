"""A model's weights as framework-free facts, and their initial values drawn once for both frameworks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hvdtrain.core.families.initializers import ONES, ZEROS, Initializer
from hvdtrain.core.random import generator


@dataclass(frozen=True)
class Layout:
    """How Keras holds a weight: with its axes in another order, perhaps in several variables.

    Attributes:
        axes: the Hugging Face axes in Keras' order; None where the order is the same.
        parts: variables of equal size that the last axis, in Keras' order, is cut into. Each may have any
            shape of that size: attention's kernels have an axis for the heads.
    """

    axes: tuple[int, ...] | None = None
    parts: int = 1

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape in the Hugging Face layout with its axes in Keras' order."""
        return shape if self.axes is None else tuple(shape[axis] for axis in self.axes)

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """An array of the Hugging Face layout as Keras' variables, in order; each keeps the array's axes."""
        found = array if self.axes is None else array.transpose(self.axes)
        return np.split(found, self.parts, axis=-1) if self.parts > 1 else [found]

    def join(self, variables: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """The inverse of `split`.

        Args:
            variables: of any shapes.
            shape: of the result, in the Hugging Face layout.
        """
        if not shape:
            return np.asarray(variables[0]).reshape(())
        *outer, last = self.shape(shape)
        parts = [part.reshape(*outer, last // self.parts) for part in variables]
        found = np.concatenate(parts, axis=-1) if self.parts > 1 else parts[0]
        return np.ascontiguousarray(found.transpose(self.inverse)) if self.axes else found

    @property
    def inverse(self) -> tuple[int, ...]:
        """Keras' axes in the Hugging Face order."""
        axes = self.axes or ()
        return tuple(axes.index(axis) for axis in range(len(axes)))


SAME = Layout()
TRANSPOSED = Layout(axes=(1, 0))


@dataclass(frozen=True)
class Weight:
    """One weight, or a buffer, under its Hugging Face name.

    Attributes:
        name: the name in `model.safetensors`.
        shape: the shape in the Hugging Face (PyTorch) layout; a linear map is (out, in).
        decays: whether weight decay applies (not to biases and layer norms).
        initial: draws its initial values.
        layout: how Keras holds it.
        lookup: whether tokens look rows up in it and nothing else uses it: other rows have no gradient.
        embedding: whether it is used before the first layer, so that backward completes its gradient last.
        tied: whether it is an embedding that the head uses, too.
        buffer: whether it is not trained, as the running mean of a batch norm or a frozen weight: it is
            broadcast, saved and resumed, and has no gradient.
        frozen: whether nothing changes it, as a buffer that is a frozen weight; ranks need not average it.
        custom: whether it is of a user's model, of which nobody here knows how it computes.
    """

    name: str
    shape: tuple[int, ...]
    decays: bool
    initial: Initializer
    layout: Layout = SAME
    lookup: bool = False
    embedding: bool = False
    tied: bool = False
    buffer: bool = False
    frozen: bool = False
    custom: bool = False

    @property
    def size(self) -> int:
        """How many elements the weight has."""
        return math.prod(self.shape)

    @property
    def table(self) -> bool:
        """Whether rows of it are taken, or it is added: then no gradient is computed from its values."""
        return self.embedding and not self.tied and len(self.shape) in (2, 3)

    @property
    def product(self) -> bool:
        """Whether matrix products alone use it, which round it to 16 bits in mixed precision."""
        return len(self.shape) > 1 and not self.embedding and not self.custom

    @property
    def layer(self) -> str:
        """The layer that it belongs to: its name up to the first number, or two components of it."""
        components = self.name.split(".")[:-1]
        numbers = (place for place, component in enumerate(components) if component.isdigit())
        return ".".join(components[: next(numbers, 1) + 1])


def trained(weights: Sequence[Weight]) -> tuple[Weight, ...]:
    """Those that have a gradient, in the same order."""
    return tuple(weight for weight in weights if not weight.buffer)


def statistics(weights: Sequence[Weight]) -> tuple[Weight, ...]:
    """Buffers that forward passes change, in the same order."""
    return tuple(weight for weight in weights if weight.buffer and not weight.frozen)


def layer_norm(name: str, size: int) -> list[Weight]:
    """A layer norm's two weights, neither of which decays: a scale of ones and a bias of zeros.

    Args:
        name: of the layer.
        size: elements of each.
    """
    return [Weight(f"{name}.weight", (size,), False, ONES), Weight(f"{name}.bias", (size,), False, ZEROS)]


def initial_weights(weights: Sequence[Weight], seed: int, dtype: str) -> dict[str, np.ndarray]:
    """Draw every weight from a generator keyed by (seed, its name), so that both frameworks start equal.

    Args:
        weights: the model's weights.
        seed: the job's seed.
        dtype: NumPy name of the returned dtype; values are drawn in float64 and rounded once.

    Returns:
        Arrays by weight name, in the Hugging Face layout.
    """
    return {
        w.name: w.initial.draw(generator(seed, f"initial weight {w.name}"), w.shape).astype(dtype)
        for w in weights
    }
