"""Which parameters an optimizer has, and what they are called."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hvdtrain.core.errors import SpecError, TrainingError

# By id, because tensors compare element by element.
Names = dict[int, tuple[str, weakref.ref[torch.Tensor]]]


def names_of(named_parameters: Any) -> Names | None:
    """The names that a user gives parameters; None where there are none.

    Args:
        named_parameters: what `model.named_parameters()` gives, or None.

    Raises:
        SpecError: it is something else.
    """
    expected = "named_parameters: expected (name, parameter) pairs, as model.named_parameters() gives"
    if named_parameters is None:
        return None
    if not is_listing(named_parameters) or isinstance(named_parameters, Mapping):
        raise SpecError(f"{expected} (found {type(named_parameters).__name__})")
    pairs = [*named_parameters]
    for pair in pairs:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and torch.is_tensor(pair[1])):
            raise SpecError(f"{expected} (found {type(pair).__name__} among them)")
    # The first name of a parameter counts.
    return {id(p): (name, weakref.ref(p)) for name, p in reversed(pairs)} or None


def is_listing(given: Any) -> bool:
    """Whether something can be a collection of parameters: a module's elements are modules."""
    return isinstance(given, Iterable) and not isinstance(given, torch.nn.Module | torch.Tensor | str)


def check_optimizer(optimizer: Any, call: str) -> None:
    """Refuse what is no optimizer.

    Args:
        optimizer: what was given.
        call: to which function, for errors.

    Raises:
        SpecError: saying what to give.
    """
    if not hasattr(optimizer, "param_groups"):
        raise SpecError(
            f"{call}: optimizer: expected a torch.optim.Optimizer, such as "
            f"torch.optim.SGD(model.parameters(), lr=0.1) (found {type(optimizer).__name__})"
        )


def named(optimizer: Any, names: Names | None, known: Iterable[int] = ()) -> dict[str, torch.nn.Parameter]:
    """An optimizer's parameters by name, in the order of its groups.

    Args:
        optimizer: with `param_groups`; those made from named parameters have names of their own.
        names: what the user has said when the optimizer was wrapped.
        known: ids of the parameters it had then. Later ones need no name: `group1.0` is the first of the
            second group.

    Raises:
        TrainingError: a parameter has no name, or another one's.
    """
    found: dict[str, torch.nn.Parameter] = {}
    later = {*known}
    for g, group in enumerate(optimizer.param_groups):
        own_names = group.get("param_names") or [None] * len(group["params"])
        for i, (parameter, own_name) in enumerate(zip(group["params"], own_names, strict=True)):
            said, owner = (names or {}).get(id(parameter), ("", None))
            # An id is another parameter's once its own is gone.
            name = said if owner is not None and owner() is parameter else own_name
            if name is None and (names is None or (later and id(parameter) not in later)):
                name = f"group{g}.{i}"
            if name is None:
                raise TrainingError(
                    f"DistributedOptimizer: parameter {i} of group {g}, shape {tuple(parameter.shape)}, is "
                    "not among named_parameters: give every model's, with a prefix each, or leave them out"
                )
            if name in found:
                raise TrainingError(
                    f"DistributedOptimizer: two parameters are named {name!r}: give each model a prefix"
                )
            found[name] = parameter
    return found
