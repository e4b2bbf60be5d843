"""A convolutional network in PyTorch; `cnn_keras.py` is its twin."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class CNN(nn.Module):
    """Two convolutions and a linear head, for pictures of 8 by 8."""

    def __init__(self, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.head = nn.Linear(2 * channels * 4 * 4, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits, (rows, classes), of pictures, (rows, height, width, 1)."""
        x = image.permute(0, 3, 1, 2)
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.relu(self.conv2(x))
        # Channels last, as Keras flattens them.
        return self.head(x.permute(0, 2, 3, 1).flatten(1))
