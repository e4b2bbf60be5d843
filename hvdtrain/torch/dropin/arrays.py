"""Tensors as the arrays that checkpoints hold."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.errors import CheckpointError
from hvdtrain.torch.weights import host_copy


def stream_of(tensors: Mapping[str, torch.Tensor]) -> ArrayStream:
    """Copies, which stay as they are while training goes on."""
    return ArrayStream.of({name: _array(tensor) for name, tensor in tensors.items()})


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """A tensor with a copy of what a checkpoint holds."""
    own = np.array(array)
    if own.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def _array(tensor: torch.Tensor) -> np.ndarray:
    found = host_copy(tensor)
    if found.dtype == torch.bfloat16:
        return found.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return found.numpy()
    except TypeError as error:
        raise CheckpointError(f"Checkpoint: a tensor of {found.dtype} cannot be saved: {error}") from None
