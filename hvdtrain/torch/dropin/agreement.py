"""Whether all ranks start with the same parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import horovod.torch as hvd
import numpy as np
import torch

from hvdtrain.core.dropin import Parameter, Settings, check_same, describe, digest
from hvdtrain.core.errors import TrainingError
from hvdtrain.torch.dropin.session import waiting_for_ranks
from hvdtrain.torch.world import gather_bytes

_ADVICE = (
    "they were not broadcast: call hvdtrain.torch.broadcast_parameters(model.state_dict(), root_rank=0) "
    "before training"
)


def compare_ranks(
    tensors: Mapping[str, torch.Tensor],
    settings: Settings | None,
    name: str,
    process_set: Any = hvd.global_process_set,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Compare names, shapes and dtypes over ranks; with settings, which begin training, values as well.

    Args:
        tensors: by name, in their order.
        settings: of the wrapper, or None before a broadcast.
        name: of the collectives.
        process_set: the ranks that are compared.
        options: whatever else must be equal, by the names that errors give.

    Raises:
        TrainingError: on every rank alike, naming the first difference and what to do.
    """
    if process_set.size() == 1:
        return
    values = [digest(_bytes(tensor)) for tensor in tensors.values()] if settings else None
    # A state_dict does not say what is frozen.
    found = facts(tensors) if settings else [replace(fact, trainable=True) for fact in facts(tensors)]
    with waiting_for_ranks(f"the comparison of models ({name})"):
        mine = describe(found, settings, values, options)
        check_same(mine, lambda data: gather_bytes(data, name, process_set), _ADVICE)


def check_shapes(tensors: Mapping[str, Any]) -> None:
    """Refuse parameters of lazy layers that no forward pass has given a shape yet.

    Raises:
        TrainingError: naming the first one.
    """
    for name, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise TrainingError(
                f"parameter {name!r} has no shape yet: with lazy layers, run one forward pass before the "
                "model is broadcast or wrapped"
            )


def facts(tensors: Mapping[str, torch.Tensor]) -> list[Parameter]:
    """What the core needs to know of tensors."""
    return [
        Parameter(name, tuple(t.shape), str(t.dtype).removeprefix("torch."), t.requires_grad)
        for name, t in tensors.items()
    ]


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
