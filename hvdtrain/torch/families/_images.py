"""What networks on images have in common: pixels in, and features for each column of targets out."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def pixels_of(inputs: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """The normalised pixels, (rows, channels, height, width), as convolutions of PyTorch take them.

    Args:
        inputs: a batch of `image_classification`.
        dtype: the weights'.
    """
    scale, offset = (inputs[name].to(dtype) for name in ("pixel_scale", "pixel_offset"))
    return (inputs["pixel_values"].to(dtype) * scale + offset).permute(0, 3, 1, 2)


def for_each_target(pooled: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The features of an image once for each of its targets, (rows, targets, features).

    Args:
        pooled: (rows, features).
        inputs: the batch.
    """
    # A copy: a view of one token would keep the hidden states of all alive until the backward pass.
    return pooled[:, None].repeat(1, inputs["targets"].shape[1], 1)
