"""A model's weights as framework-free facts, and their initial values drawn once for both frameworks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from hvdtrain.core.random import generator
from hvdtrain.core.sections import ModelSpec


@dataclass(frozen=True)
class Weight:
    """One trainable weight under its Hugging Face name.

    Attributes:
        name: the name in `model.safetensors`.
        shape: the shape in the Hugging Face (PyTorch) layout; a linear map is (out, in).
        decays: whether weight decay applies (not to biases and layer norms).
        initial: `normal` (mean 0, the model's `initializer_range`), `zeros` or `ones`.
        transposed: whether Keras holds the matrix the other way round, (in, out).
        lookup: whether tokens look rows up in it and nothing else uses it: other rows have no gradient.
        embedding: whether it is used before the first layer, so that backward completes its gradient last.
    """

    name: str
    shape: tuple[int, ...]
    decays: bool
    initial: Literal["normal", "zeros", "ones"]
    transposed: bool = False
    lookup: bool = False
    embedding: bool = False

    @property
    def size(self) -> int:
        """How many elements the weight has."""
        return math.prod(self.shape)


class ModelFamily(Protocol):
    """What the core asks of a model family; a module of `hvdtrain.models` is one."""

    def weights(self, model: ModelSpec) -> tuple[Weight, ...]:
        """Every trainable weight in the order of the forward pass."""
        ...

    def untrained(self, model: ModelSpec) -> tuple[Weight, ...]:
        """Weights that another library asks for when it opens a saved model, and that training has not."""
        ...

    def activation_bytes(
        self, model: ModelSpec, rows: int, length: int, predictions: int, itemsize: int
    ) -> int:
        """What the forward pass of a micro-batch saves for its backward pass, in bytes.

        Args:
            model: the hyper-parameters.
            rows: sequences.
            length: tokens of each.
            predictions: most predictions of each.
            itemsize: bytes of one element in matrix products.
        """
        ...

    def product_elements(self, model: ModelSpec) -> int:
        """Elements of all weights and biases that are used in matrix products."""
        ...

    def hf_config(self, model: ModelSpec, pad_token_id: int) -> dict[str, Any]:
        """The content of `config.json`."""
        ...


def initial_weights(weights: Sequence[Weight], seed: int, std: float, dtype: str) -> dict[str, np.ndarray]:
    """Draw every weight from a generator keyed by (seed, its name), so that both frameworks start equal.

    Args:
        weights: the model's weights.
        seed: the job's seed.
        std: standard deviation of the `normal` weights.
        dtype: NumPy name of the returned dtype; values are drawn in float64 and rounded once.

    Returns:
        Arrays by weight name, in the Hugging Face layout.
    """
    return {w.name: _draw(w, seed, std).astype(dtype) for w in weights}


def _draw(weight: Weight, seed: int, std: float) -> np.ndarray:
    if weight.initial == "normal":
        return generator(seed, f"initial weight {weight.name}").normal(0.0, std, weight.shape)
    return np.full(weight.shape, 1.0 if weight.initial == "ones" else 0.0)
