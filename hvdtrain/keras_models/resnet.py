"""ResNet of Keras' layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from hvdtrain.core.families import resnet
from hvdtrain.core.families.convolutions import Block, Convolution
from hvdtrain.core.families.resnet import ModelSpec
from hvdtrain.keras_models.layers import Layers, pixel_values


def build(model: ModelSpec, folder: Path) -> keras.Model:
    """Build a saved model.

    Args:
        model: the hyper-parameters.
        folder: holds its weights.

    Returns:
        A model of normalised pixels, (rows, height, width, channels); logits, (rows, num_labels).
    """
    layers = Layers(model)
    # Of any size: the mean of the last maps is taken.
    pixels = pixel_values(model.num_channels, model.dtype)
    maps = ops.relu(_convolved(layers, resnet.stem(model), pixels))
    # Zeros, behind ReLU, are as good as nothing.
    maps = keras.layers.MaxPooling2D(3, 2, dtype=model.dtype)(_padded(maps, 3))
    for block in resnet.blocks(model):
        maps = _block(layers, block, maps)
    pooled = keras.layers.GlobalAveragePooling2D(dtype=model.dtype)(maps)
    return layers.model(pixels, layers.linear(f"{resnet.HEAD}1", pooled), folder)


def _block(layers: Layers, block: Block, maps: Any) -> Any:
    *early, last = block.path
    found = maps
    for convolution in early:
        found = ops.relu(_convolved(layers, convolution, found))
    shortcut = _convolved(layers, block.shortcut, maps) if block.shortcut else maps
    return ops.relu(_convolved(layers, last, found) + shortcut)


def _convolved(layers: Layers, convolution: Convolution, maps: Any) -> Any:
    padded, name = _padded(maps, convolution.kernel), convolution.name
    found = layers.convolution(f"{name}.convolution", padded, convolution.stride)
    return layers.batch_norm(f"{name}.normalization", found)


def _padded(maps: Any, kernel: int) -> Any:
    """With half a kernel of zeros on each side, as in PyTorch; Keras' `same` pads the ends more."""
    return keras.layers.ZeroPadding2D(kernel // 2, dtype=maps.dtype)(maps) if kernel > 1 else maps
