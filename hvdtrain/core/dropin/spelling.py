"""Horovod's spelling of the wrappers' arguments, where it has an exact counterpart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hvdtrain.core.dropin.settings import Settings, make_settings
from hvdtrain.core.errors import SpecError

# Buckets replace groups, sparse gradients are made dense, and Horovod finds the device.
_WITHOUT_MEANING = {
    "device_dense",
    "device_sparse",
    "groups",
    "num_groups",
    "scale_local_gradients",
    "sparse_as_dense",
}


@dataclass(frozen=True)
class Horovod:
    """What a framework's Horovod has for values of arguments.

    Attributes:
        compressions: a policy's type for each class of `Compression` that has one.
        operations: `Average`, `Sum` and `Adasum`, by these keys.
        everyone: the process set of all ranks.
    """

    compressions: Mapping[Any, str]
    operations: Mapping[str, Any]
    everyone: Any


def settings_of(wrapper: str, horovod: Horovod, spelled: Mapping[str, Any], **ours: Any) -> Settings:
    """A wrapper's arguments, in Horovod's spelling as well.

    Args:
        wrapper: how the user calls it, for errors.
        horovod: of the framework.
        spelled: arguments that have Horovod's names alone.
        **ours: fields of `Settings`; `compression` may also be a type's name, or a class of Horovod's.

    Returns:
        The settings.

    Raises:
        SpecError: an argument is unknown, said twice, or has no exact counterpart here.
    """
    rest = {name: value for name, value in spelled.items() if name not in _WITHOUT_MEANING}
    op = rest.pop("op", horovod.operations["Average"])
    # Where a mean is divided does not change it; a sum is not divided at all.
    predivided = rest.pop("gradient_predivide_factor", 1.0) != 1.0
    if predivided and op != horovod.operations["Average"]:
        raise SpecError(f"{wrapper}: gradient_predivide_factor goes with op=Average alone")
    group = rest.pop("process_set", horovod.everyone)
    ours["compression"] = _compression(wrapper, horovod, ours["compression"])
    _take_operation(wrapper, horovod, op, ours)
    _take_passes(wrapper, rest, ours)
    settings = make_settings(wrapper, **ours, **rest)
    if group is not horovod.everyone and any(p.type == "adasum" for p in settings.rules.policies):
        raise SpecError(f"{wrapper}: process_set: Adasum combines the gradients of all ranks alone")
    return settings


def process_set_of(wrapper: str, horovod: Horovod, spelled: Mapping[str, Any]) -> Any:
    """The ranks that a wrapper reduces over: those of its `process_set`, or all.

    Args:
        wrapper: how the user calls it, for errors.
        horovod: of the framework.
        spelled: its arguments.

    Raises:
        SpecError: the set is not known to Horovod, or this rank is not in it.
    """
    found = spelled.get("process_set", horovod.everyone)
    if found is horovod.everyone:
        return found
    if not hasattr(found, "process_set_id"):
        raise SpecError(f"{wrapper}: process_set: expected a ProcessSet (found {found!r})")
    if found.process_set_id is None:
        raise SpecError(
            f"{wrapper}: process_set: Horovod does not know ranks {found.ranks} as a set of their own: give "
            "it to init(process_sets=[...]); the set of all ranks is global_process_set"
        )
    if not found.included():
        raise SpecError(
            f"{wrapper}: process_set: this rank is not among {found.ranks}: give each rank the set that it "
            "belongs to, and leave the optimizers of others as they are"
        )
    return found


def _compression(wrapper: str, horovod: Horovod, found: Any) -> Any:
    if not isinstance(found, type):
        return found
    if found not in horovod.compressions:
        raise SpecError(
            f"{wrapper}: compression {found.__name__}: expected Compression.none, Compression.fp16, or a "
            "policy of docs/compression.md such as 'int8'"
        )
    return horovod.compressions[found]


def _take_operation(wrapper: str, horovod: Horovod, op: Any, ours: dict[str, Any]) -> None:
    if op not in horovod.operations.values():
        raise SpecError(f"{wrapper}: op: expected {', '.join(horovod.operations)} (found {op!r})")
    if op == horovod.operations["Average"]:
        return
    if ours["average"] != "mean":
        raise SpecError(
            f"{wrapper}: op says how to divide, and so does average={ours['average']!r}: give one"
        )
    if op == horovod.operations["Sum"]:
        ours["average"] = "sum"
    elif ours["compression"] == "none":
        ours["compression"] = "adasum"
    else:
        raise SpecError(f"{wrapper}: op=Adasum goes without compression, found {ours['compression']!r}")


def _take_passes(wrapper: str, rest: dict[str, Any], ours: dict[str, Any]) -> None:
    averaged = rest.pop("average_aggregated_gradients", False)
    passes = rest.pop("backward_passes_per_step", None)
    if passes is None:
        return
    steps = ours["gradient_accumulation_steps"]
    if steps != 1:
        raise SpecError(
            f"{wrapper}: backward_passes_per_step {passes} and gradient_accumulation_steps {steps} mean the "
            "same: give one of them"
        )
    ours["gradient_accumulation_steps"] = passes
    # Horovod adds micro-batches up unless told otherwise.
    if ours["average"] == "mean" and not averaged:
        ours["average"] = "ranks"


def by_position(
    wrapper: str, names: Sequence[str], values: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    """A wrapper's arguments that were given by position, by name.

    Args:
        wrapper: how the user calls it, for errors.
        names: of Horovod's wrapper's arguments, in its order.
        values: given, in that order.
        named: arguments that were given by name.

    Raises:
        SpecError: there are too many, one is given twice, or one is plainly meant for another place.
    """
    if len(values) > len(names):
        raise SpecError(
            f"{wrapper}: {values[len(names)]!r} is given by position, behind {names[-1]}, where each Horovod "
            "has another argument: give it by name"
        )
    found = dict(zip(names, values, strict=False))
    for name, value in found.items():
        if name in named:
            raise SpecError(f"{wrapper}: {name} is given by position and by name: give it once")
        if name.startswith("device") and not (isinstance(value, str) and (not value or ":" in value)):
            raise SpecError(
                f"{wrapper}: {value!r} is where Horovod takes {name}: give arguments by name, such as "
                "compression='fp16'"
            )
    return found
