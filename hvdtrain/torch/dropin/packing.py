"""An optimizer's state in bytes that ranks send each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch

from hvdtrain.core.errors import TrainingError
from hvdtrain.torch.dropin.state import swap
from hvdtrain.torch.weights import host_copy

_State = dict[str, Any]
_TENSOR, _REST = "hvdtrain.tensor", "rest"


def pack(states: Mapping[str, _State]) -> bytes:
    """Put states into bytes, without pickle.

    Args:
        states: of parameters, by name.

    Raises:
        TrainingError: one holds something else than tensors and plain values.
    """
    tensors: dict[str, torch.Tensor] = {}

    def take_out(tensor: torch.Tensor) -> _State:
        tensors[str(len(tensors))] = host_copy(tensor)
        return {_TENSOR: str(len(tensors) - 1)}

    for name, state in states.items():
        rest = swap(state, torch.is_tensor, take_out)
        try:
            text = json.dumps(rest)
        except TypeError:
            text = "{}"
        if json.loads(text) != rest:
            raise TrainingError(
                f"consolidate_state_dict: the optimizer's state of {name!r} is not of tensors, numbers, "
                "texts, lists and dictionaries alone, and cannot be sent: use zero_stage=0"
            )
        tensors[f"{_REST}.{name}"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    # Never empty.
    return safetensors.torch.save(tensors)


def unpack(message: bytes) -> dict[str, _State]:
    """States, with their tensors on the CPU; `message` is what `pack` has made."""
    tensors = safetensors.torch.load(message)

    def is_place(tree: Any) -> bool:
        return isinstance(tree, dict) and [*tree] == [_TENSOR]

    return {
        name.removeprefix(f"{_REST}."): swap(
            json.loads(value.numpy().tobytes()), is_place, lambda place: tensors[place[_TENSOR]]
        )
        for name, value in tensors.items()
        if name.startswith(f"{_REST}.")
    }
