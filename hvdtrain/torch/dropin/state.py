"""Starting all ranks from one rank's weights and optimizer state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import horovod.torch as hvd
import torch

from hvdtrain.core.errors import SpecError
from hvdtrain.core.run.ranks import MESSAGE_BYTES
from hvdtrain.torch.dropin.agreement import check_shapes, compare_ranks
from hvdtrain.torch.dropin.naming import check_optimizer, is_listing
from hvdtrain.torch.dropin.session import require_init, waiting_for_ranks


def broadcast_parameters(params: Any, root_rank: int = 0) -> None:
    """Give every rank one rank's parameters and buffers, in place.

    Args:
        params: `model.state_dict()`, `model.named_parameters()` or `model.parameters()`; of any dtype.
        root_rank: whose.

    Raises:
        SpecError: something else is given, such as the model itself.
        TrainingError: ranks differ in names, shapes or dtypes.
    """
    require_init("broadcast_parameters")
    pairs = _pairs(params)
    check_shapes(dict(pairs))
    # A module's state may hold extra state that is no tensor.
    tensors = {name: value.detach() for name, value in pairs if torch.is_tensor(value)}
    compare_ranks(tensors, None, "broadcast_parameters.check")
    with waiting_for_ranks("broadcast_parameters"):
        broadcast(tensors, root_rank, "broadcast_parameters")


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int = 0, model: Any = None
) -> None:
    """Give every rank one rank's optimizer state and options, whatever optimizer it is.

    State that ranks have not made yet is made: nothing is stepped for it.

    Args:
        optimizer: wrapped or not.
        root_rank: whose.
        model: not needed; Horovod's function takes it.
    """
    require_init("broadcast_optimizer_state")
    check_optimizer(optimizer, "broadcast_optimizer_state")
    del model
    tensors: dict[str, torch.Tensor] = {}

    def take_out(tensor: torch.Tensor) -> _Place:
        name = str(len(tensors))
        tensors[name] = tensor.detach()
        return _Place(name, tuple(tensor.shape), _dtype(tensor), tensor.device.type)

    def make(place: _Place) -> torch.Tensor:
        device = torch.device("cpu") if place.device == "cpu" else _device_of(optimizer)
        tensors[place.name] = torch.zeros(place.shape, dtype=getattr(torch, place.dtype), device=device)
        return tensors[place.name]

    is_root = hvd.rank() == root_rank
    tree = swap(optimizer.state_dict(), torch.is_tensor, take_out) if is_root else None
    with waiting_for_ranks("broadcast_optimizer_state"):
        tree = hvd.broadcast_object(tree, root_rank, name="broadcast_optimizer_state")
        state = None if is_root else swap(tree, lambda leaf: isinstance(leaf, _Place), make)
        broadcast(tensors, root_rank, "broadcast_optimizer_state.tensor")
    if state is not None:
        optimizer.load_state_dict(state)


def _pairs(params: Any) -> list[tuple[str, Any]]:
    if isinstance(params, Mapping):
        return [*params.items()]
    fits = is_listing(params)
    pairs = []
    for i, item in enumerate(params if fits else [None]):
        pair = item if isinstance(item, tuple) and len(item) == 2 else (f"parameter{i}", item)
        if not torch.is_tensor(pair[1]):
            found = type(item if fits else params).__name__ + (" among them" if fits else "")
            raise SpecError(
                "broadcast_parameters: expected model.state_dict(), model.named_parameters() or "
                f"model.parameters() (found {found})"
            )
        pairs.append(pair)
    return pairs


class _Place:
    """Where a tensor was, and what it was like."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, device: str) -> None:
        self.name, self.shape, self.dtype, self.device = name, shape, dtype, device


def broadcast(tensors: Mapping[str, torch.Tensor], root_rank: int, prefix: str) -> None:
    """Give every rank one rank's tensors, in place; `prefix` is of the names of collectives."""
    # As bytes, because Horovod knows fewer dtypes than PyTorch; of one message it counts them in an int.
    flats = {n: t.contiguous().reshape(-1).view(torch.uint8) for n, t in tensors.items() if t.numel()}
    pieces = {f"{n}.{i}": p for n, flat in flats.items() for i, p in enumerate(flat.split(MESSAGE_BYTES))}
    handles = [hvd.broadcast_async_(piece, root_rank, name=f"{prefix}.{n}") for n, piece in pieces.items()]
    for handle in handles:
        hvd.synchronize(handle)
    for name, flat in flats.items():
        if not tensors[name].is_contiguous():
            tensors[name].copy_(flat.view(tensors[name].dtype).view(tensors[name].shape))


def swap(tree: Any, chosen: Callable[[Any], bool], replace: Callable[[Any], Any]) -> Any:
    """A copy of nested containers with every chosen leaf replaced.

    Args:
        tree: dictionaries, lists and tuples, and leaves.
        chosen: whether a leaf is to be replaced.
        replace: gives what takes its place.
    """
    if chosen(tree):
        return replace(tree)
    if isinstance(tree, dict):
        return {key: swap(value, chosen, replace) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        found: Iterable[Any] = (swap(value, chosen, replace) for value in tree)
        return type(tree)(found)
    return tree


def _device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    return optimizer.param_groups[0]["params"][0].device


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
