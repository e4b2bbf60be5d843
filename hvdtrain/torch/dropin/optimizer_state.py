"""An optimizer's state under the names of the model's parameters, in place of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from hvdtrain.core.dropin.plain import put_together
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.torch.dropin.copies import own_class

_State = dict[str, Any]


def group_names(optimizer: Any, model: torch.nn.Module) -> list[list[str]]:
    """The names of each group's parameters.

    Args:
        optimizer: with `param_groups`.
        model: has them all.

    Raises:
        SpecError: it lacks one.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for g, group in enumerate(optimizer.param_groups):
        found.append([names.get(id(parameter), "") for parameter in group["params"]])
        if "" in found[-1]:
            raise SpecError(
                f"Checkpoint: parameter {found[-1].index('')} of the optimizer's group {g} is none of the "
                "model's: give the model that has all of them; several as torch.nn.ModuleDict"
            )
    return found


def named_state(optimizer: Any, model: torch.nn.Module) -> _State:
    """An optimizer's state and options, with parameters by name; arguments as `group_names`."""
    whole, names = optimizer.state_dict(), group_names(optimizer, model)
    by_place = dict(enumerate(name for group in names for name in group))
    options = [{**group, "params": each} for group, each in zip(whole["param_groups"], names, strict=True)]
    state = {by_place[place]: value for place, value in whole["state"].items()}
    return {"type": own_class(optimizer).__name__, "groups": options, "state": state}


def check_named_state(record: Mapping[str, Any], optimizer: Any, model: torch.nn.Module, where: Any) -> None:
    """Refuse what belongs to another optimizer.

    Args:
        record: what `named_state` gave, taken apart.
        optimizer: of today.
        model: likewise.
        where: the checkpoint's directory, for errors.

    Raises:
        CheckpointError: naming the difference.
    """
    kind, saved = own_class(optimizer).__name__, record["groups"]
    if record["type"] != kind:
        raise CheckpointError(
            f"{where}: was saved with {record['type']}, and the optimizer is {kind}: take {record['type']}"
        )
    names = group_names(optimizer, model)
    if len(saved) != len(names):
        raise CheckpointError(
            f"{where}: its optimizer had {len(saved)} group(s) of parameters, and there are {len(names)}"
        )
    for g, (group, today) in enumerate(zip(saved, names, strict=True)):
        if odd := sorted({*group["params"]} ^ {*today}):
            there = "there" if odd[0] in group["params"] else "in the optimizer"
            raise CheckpointError(
                f"{where}: {odd[0]} is in group {g} {there} alone: make the groups that were saved"
            )


def load_named_state(
    record: Mapping[str, Any], optimizer: Any, model: torch.nn.Module, read: Callable[[str], torch.Tensor]
) -> None:
    """Give an optimizer its state and options; every rank calls it, and with `zero_stage` keeps its own.

    Args:
        record: as of `check_named_state`.
        optimizer: of today.
        model: likewise.
        read: gives a tensor by its name.
    """
    names = group_names(optimizer, model)
    places = {name: place for place, name in enumerate(name for group in names for name in group)}
    groups = []
    for saved, today, each in zip(record["groups"], optimizer.param_groups, names, strict=True):
        options = put_together({**saved, "params": []}, read, today)
        groups.append({**options, "params": [places[name] for name in each]})
    sharding, state = getattr(optimizer, "_sharding", None), {}
    for name, value in record["state"].items():
        # Read by all: ranks take part in each other's.
        found = put_together(value, read)
        if sharding is None or sharding.is_own(model.get_parameter(name)):
            state[places[name]] = found
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    _keep_dtypes(optimizer, state)
    if sharding is not None and sharding.owners.ranks > 1:
        # What is not there is another rank's.
        sharding.others = None


def _keep_dtypes(optimizer: Any, state: Mapping[int, _State]) -> None:
    """Undo what PyTorch's loading does: it gives every tensor its parameter's dtype."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, saved in state.items():
        loaded = optimizer.state[parameters[place]]
        for name, value in saved.items():
            if torch.is_tensor(value) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)
