"""Batches of images for tests of families, and Transformers' ResNet with any weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from hvdtrain.core.data import Batch
from hvdtrain.core.families import resnet
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.tasks.classification import targets_of

MEAN, STD = 0.4, 0.3


def batch_of(model: Any, real: int = 5, rows: int | None = None, seed: int = 5) -> Batch:
    """Images for image_classification; those beyond the real ones are anything but zeros.

    Args:
        model: with `image_size`, `num_channels` and `num_labels`.
        real: how many.
        rows: of the batch; None: as many.
        seed: of pixels and labels.
    """
    rows = real if rows is None else rows
    random = np.random.default_rng(seed)
    shape = rows, model.image_size, model.image_size, model.num_channels
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    found = targets_of(random.integers(0, model.num_labels, rows)[:real], rows)
    ones = np.ones(model.num_channels)
    inputs = {"pixel_values": pixels, "pixel_scale": ones / (255 * STD), "pixel_offset": -MEAN / STD * ones}
    return Batch(inputs, found.targets, found.loss_weights, found.weight, {"samples": real, "tokens": real})


def pixels_for_transformers(batch: Batch) -> torch.Tensor:
    """What an image processor makes of a batch's images, float64."""
    pixels = torch.from_numpy(batch.inputs["pixel_values"]).double() / 255
    return ((pixels - MEAN) / STD).permute(0, 3, 1, 2)


def resnet_values(model: resnet.ModelSpec, seed: int = 3) -> dict[str, np.ndarray]:
    """Initial weights, and norms that are nowhere near theirs, by name."""
    random, table = np.random.default_rng(seed), resnet.weights(model)
    found = initial_weights(table, seed, model.dtype)
    norms = [w for w in table if ".normalization." in w.name]
    return found | {w.name: random.uniform(0.5, 1.5, w.shape).astype(model.dtype) for w in norms}


def transformers_resnet(model: resnet.ModelSpec) -> ResNetForImageClassification:
    """What Transformers builds from the `config.json` of a saved model, with `resnet_values`."""
    found = ResNetForImageClassification(ResNetConfig(**resnet.hf_config(model)))
    found.to(getattr(torch, model.dtype))
    arrays = {name: torch.from_numpy(array) for name, array in resnet_values(model).items()}
    missing, unexpected = found.load_state_dict(arrays, strict=False)
    assert not unexpected
    assert set(missing) <= resnet.counts(model).keys()
    return found
