"""The layers of one model, named as Hugging Face's modules, so that its weights find their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from hvdtrain.core.checkpoints.saved_models import open_weights
from hvdtrain.core.families import family_of
from hvdtrain.core.families.batch_norm import EPSILON, MOMENTUM
from hvdtrain.core.spec.sections import ModelSection

# PyTorch's names of what Keras' layers hold.
LEAVES = {
    "kernel": "weight",
    "embeddings": "weight",
    "gamma": "weight",
    "scale": "weight",
    "bias": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_new": lambda x: ops.gelu(x, approximate=True),
    "silu": ops.silu,
}


class Layers:
    """Makes the layers of a model from its family's table of weights."""

    def __init__(self, model: ModelSection) -> None:
        """Take the hyper-parameters of a family's model."""
        self._weights = {weight.name: weight for weight in family_of(model).weights(model)}
        self._type, self._dtype = model.model_type, model.dtype

    def linear(self, name: str, x: Any) -> Any:
        """A linear map, with a bias where the table has one."""
        outputs = self._shape(name)[-1]
        return keras.layers.Dense(outputs, use_bias=f"{name}.bias" in self._weights, **self._named(name))(x)

    def embedding(self, name: str) -> keras.layers.ReversibleEmbedding:
        """A table of embeddings, which a head may use as well; of a weight of one axis, its only row."""
        rows, elements = (1, *self._shape(name))[-2:]
        return keras.layers.ReversibleEmbedding(rows, elements, **self._named(name))

    def lm_head(self, tokens: keras.layers.ReversibleEmbedding, hidden: Any, tied: bool) -> Any:
        """Logits of the next token: of the table of tokens where the two are tied, else of `lm_head`."""
        return tokens(hidden, reverse=True) if tied else self.linear("lm_head", hidden)

    def table(self, name: str, values: np.ndarray) -> keras.layers.Embedding:
        """Rows that are looked up and never trained.

        Args:
            name: of the layer.
            values: (rows, elements).
        """
        layer = keras.layers.Embedding(*values.shape, trainable=False, **self._named(name))
        layer.build()
        layer.set_weights([values])
        return layer

    def norm(self, name: str, x: Any, epsilon: float) -> Any:
        """A layer norm, or a root-mean-square norm where it has no bias."""
        whole = f"{name}.bias" in self._weights
        kind = keras.layers.LayerNormalization if whole else keras.layers.RMSNormalization
        return kind(epsilon=epsilon, **self._named(name))(x)

    def convolution(self, name: str, x: Any, stride: int) -> Any:
        """A convolution of images, (rows, height, width, channels), without padding."""
        *size, _, outputs = self._shape(name)
        bias = f"{name}.bias" in self._weights
        return keras.layers.Conv2D(outputs, size, stride, use_bias=bias, **self._named(name))(x)

    def batch_norm(self, name: str, x: Any) -> Any:
        """A batch norm of maps, (rows, height, width, channels)."""
        return keras.layers.BatchNormalization(momentum=1.0 - MOMENTUM, epsilon=EPSILON, **self._named(name))(
            x
        )

    def dropout(self, rate: float, x: Any) -> Any:
        """Dropout while the model is trained."""
        return keras.layers.Dropout(rate, dtype=self._dtype)(x)

    def attention(self, parts: Sequence[Any], size: int, seen: Any, dropout: float) -> Any:
        """Attention of several heads.

        Args:
            parts: query, key and value, (rows, length, heads · size) each, or as `heads` returns them. Keys
                and values may have fewer heads, each of which serves a group of queries.
            size: of a head.
            seen: whether a token looks at another, bool, broadcast to (rows, heads, length, length); None: at
                all.
            dropout: its rate, of attention's probabilities.

        Returns:
            (rows, length, heads · size).
        """
        query, key, value = (self.heads(x, size) for x in parts)
        group = query.shape[2] // key.shape[2]
        if group > 1:
            key, value = (ops.repeat(x, group, axis=2) for x in (key, value))
        scores = ops.einsum("bqhd,bkhd->bhqk", query * size**-0.5, key)
        shares = keras.layers.Softmax(dtype=self._dtype)(scores, mask=seen)
        found = ops.einsum("bhqk,bkhd->bqhd", self.dropout(dropout, shares), value)
        return keras.layers.Reshape((-1, found.shape[2] * size), dtype=self._dtype)(found)

    def heads(self, x: Any, size: int) -> Any:
        """What attention takes, (rows, length, heads, size)."""
        if len(x.shape) == 4:
            return x
        return keras.layers.Reshape((-1, x.shape[-1] // size, size), dtype=self._dtype)(x)

    def model(self, inputs: Any, outputs: Any, folder: Path) -> keras.Model:
        """A model of these layers, with the weights that a folder holds.

        Args:
            inputs: of Keras, or several by name.
            outputs: made of them.
            folder: of the saved model.

        Raises:
            CheckpointError: the folder's weights are missing, damaged, or those of another model.
        """
        model, missing = keras.Model(inputs, outputs, name=self._type), dict(self._weights)
        arrays = open_weights(folder, [*missing.values()], self._dtype)
        for variable in model.weights:
            module, leaf = variable.path.rsplit("/", 1)
            weight = missing.pop(f"{module}.{LEAVES[leaf]}", None) or missing.pop(module, None)
            # A table has its values.
            if weight:
                parts = weight.layout.split(arrays[weight.name])
                variable.assign(np.concatenate(parts, axis=-1).reshape(variable.shape))
        assert not missing, f"no layer for {', '.join(missing)}"
        return model

    def _shape(self, name: str) -> tuple[int, ...]:
        """That of a module's weight, or of a weight without a module, as Keras has it."""
        weight = self._weights.get(f"{name}.weight") or self._weights[name]
        return weight.layout.shape(weight.shape)

    def _named(self, name: str) -> dict[str, str]:
        return {"name": name, "dtype": self._dtype}


def text_inputs(*names: str) -> dict[str, Any]:
    """Inputs as Hugging Face's tokenizers return them, int32 (rows, length), by name."""
    return {name: keras.Input((None,), dtype="int32", name=name) for name in names}


def pixel_values(channels: int, dtype: str, side: int | None = None) -> Any:
    """An input of normalised pixels, (rows, height, width, channels), by the name that Hugging Face gives it.

    Args:
        channels: of an image.
        dtype: of the pixels.
        side: height and width; None: any.
    """
    return keras.Input((side, side, channels), dtype=dtype, name="pixel_values")


def places(x: Any) -> Any:
    """The numbers of the columns of (rows, length), int32 of that shape."""
    return ops.cumsum(ops.ones_like(x, dtype="int32"), axis=1) - 1


def only(x: Any) -> Any:
    """The number of an embedding's only row, for each row of (rows, length): int32 (rows, 1)."""
    return ops.zeros_like(x[:, :1], dtype="int32")


def seen(attention_mask: Any, causal: bool = False) -> Any:
    """Which tokens each one looks at, bool (rows, 1, 1 or length, length).

    Args:
        attention_mask: 1 for tokens, 0 for padding, (rows, length).
        causal: whether a token looks at none behind it.
    """
    real = ops.cast(attention_mask, "bool")[:, None, None, :]
    if not causal:
        return real
    numbers = places(attention_mask)
    return ops.logical_and(real, numbers[:, None, :, None] >= numbers[:, None, None, :])
