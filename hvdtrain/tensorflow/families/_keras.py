"""What Keras' layers need to compute what the spec says, in its precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def _in_float32(activation: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Every step of a formula rounds to its dtype; PyTorch rounds to 16 bits once, at the end."""
    return lambda x: (
        tf.cast(activation(tf.cast(x, "float32")), x.dtype) if x.dtype.size == 2 else activation(x)
    )


@_in_float32
def _gelu(x: tf.Tensor) -> tf.Tensor:
    return 0.5 * x * (1.0 + tf.math.erf(x * tf.constant(math.sqrt(0.5), x.dtype)))


@_in_float32
def _gelu_new(x: tf.Tensor) -> tf.Tensor:
    return (
        0.5
        * x
        * (1.0 + tf.tanh(tf.constant(math.sqrt(2 / math.pi), x.dtype) * (x + 0.044715 * tf.pow(x, 3.0))))
    )


@_in_float32
def _silu(x: tf.Tensor) -> tf.Tensor:
    return x * tf.sigmoid(x)


# TensorFlow 2.21's tf.nn.gelu rounds its constants to float32 even for float64 input: wrong by 5e-9.
ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_new,
    "silu": _silu,
    "tanh": _in_float32(tf.tanh),
}


class Whole:
    """How a network calls its layers: as they are, where their weights are whole; see `GatheredWeights`."""

    def __call__(self, call: Callable[..., tf.Tensor], x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Compute a layer."""
        return call(x, *args, **kwargs)

    def head(
        self, call: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, *others: keras.Variable
    ) -> tf.Tensor:
        """Compute the head."""
        del others  # whose weights they are does not matter
        return call(x)


def set_attention_scale(attention: keras.layers.Layer, head_size: int, dtype: str) -> None:
    """Have an attention layer scale scores by 1/sqrt(head size) in a precision.

    Keras 3.15 rounds the factor to float32 even for float64 queries: wrong by 1e-8.
    """
    attention._inverse_sqrt_key_dim = np.dtype(dtype).type(math.sqrt(1 / head_size))


def round_products(compute_dtype: str, *products: keras.layers.Layer) -> None:
    """Have matrix products alone, and the activation behind one, computed in 16 bits, as autocast does.

    A policy for whole models would also round embeddings and the sums of residuals, and Keras would sum the
    embeddings' gradients in 16 bits.

    Args:
        compute_dtype: `float16` or `bfloat16`.
        products: dense layers and attention layers; of attention, the projections as well.
    """
    policy = keras.DTypePolicy({"float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}[compute_dtype])
    for product in products:
        product.dtype_policy = policy
        if isinstance(product, keras.layers.MultiHeadAttention):
            # The softmax keeps the float32 of the other layers; its dropout rounds for the product behind it.
            for part in ("query_dense", "key_dense", "value_dense", "output_dense", "dropout_layer"):
                getattr(product, f"_{part}").dtype_policy = policy
