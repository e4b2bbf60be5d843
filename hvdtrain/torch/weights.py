"""A weight in this framework's variables, and as an array in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch

from hvdtrain.core.families.weights import Weight

# What holds one weight, and what holds each by its Hugging Face name.
Parameter: TypeAlias = torch.Tensor
Parameters: TypeAlias = Mapping[str, Parameter]


def host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in host memory; of a tensor on a GPU in pinned memory, into which the GPU writes."""
    layout = torch.contiguous_format
    host = torch.empty_like(tensor, device="cpu", memory_format=layout, pin_memory=tensor.is_cuda)
    return host.copy_(tensor.detach())


def read(weight: Weight, parameter: Parameter) -> np.ndarray:
    """A copy of what a parameter holds, in the Hugging Face layout."""
    return host_copy(parameter).numpy().reshape(weight.shape)


def write(weight: Weight, parameter: Parameter, array: np.ndarray) -> None:
    """Set a parameter from an array in the Hugging Face layout."""
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(array).reshape(weight.shape))
