"""Parameters that hold no memory: their values are somewhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of NaN in the memory of one element."""
    return torch.full((), float("nan"), dtype=dtype, device=device).expand(tuple(shape))


def is_empty(tensor: torch.Tensor) -> bool:
    """Whether it is such a tensor."""
    return (
        not tensor.is_meta
        and tensor.untyped_storage().nbytes() == tensor.itemsize
        and bool(tensor.isnan().all())
    )


@contextmanager
def without_memory() -> Iterator[None]:
    """Modules that are built here have parameters on the device `meta`, for `place`."""
    register = torch.nn.Module.register_parameter

    def patched(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        # A tied one comes twice and stays itself.
        if parameter is not None and not parameter.is_meta and not is_empty(parameter):
            parameter = torch.nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    torch.nn.Module.register_parameter = patched  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


def place(module: torch.nn.Module, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
    """Move a module to a dtype and device; parameters on `meta` become `empty` ones there.

    Args:
        module: changed in place.
        dtype: of its floating-point parameters and buffers.
        device: where it computes.
    """
    found: dict[int, torch.nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta:
                # Tied ones stay one.
                fresh = torch.nn.Parameter(empty(parameter.shape, dtype, device), parameter.requires_grad)
                owner._parameters[name] = found.setdefault(id(parameter), fresh)
    return module.to(dtype=dtype, device=device)
