"""What all ranks must have in common before the first reduction: settings, parameters, and their values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hvdtrain.core.dropin.layout import Parameter
from hvdtrain.core.dropin.settings import Settings
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run.agreement import gather_where_different, name_ranks, odd_ranks, who_has_what

# Where another rank has a value.
_MISSING = "missing"


def digest(data: Any) -> str:
    """A short hash of a parameter's memory.

    Args:
        data: anything with a buffer, such as bytes or a contiguous NumPy array.
    """
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def describe(
    parameters: Sequence[Parameter],
    settings: Settings | None = None,
    digests: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> bytes:
    """Put into bytes what a rank has, for `check_same`.

    Args:
        parameters: in their order.
        settings: of the wrapper, if they are to be compared.
        digests: of the parameters' values, if those are to be compared.
        options: whatever else the user has chosen, such as the learning rate, by the names that errors give.
    """
    values = digests or [""] * len(parameters)
    rows = [
        [p.shared_name or p.name, _kind(p, settings), value]
        for p, value in zip(parameters, values, strict=True)
    ]
    fields = (settings.model_dump(mode="json") if settings else {}) | dict(options or {})
    names = [p.name for p in parameters]
    return json.dumps({"settings": fields, "parameters": rows, "names": names}, default=repr).encode()


def _kind(parameter: Parameter, settings: Settings | None) -> str:
    kind = f"shape {list(parameter.shape)} {parameter.dtype}" + ("" if parameter.trainable else ", frozen")
    if settings and any(policy.match != "*" for policy in settings.rules.policies):
        # By this rank's name for it, which `match` goes by, and which another rank may have otherwise.
        kind += f", entry {settings.rules.group(parameter.name)} of compression"
    return kind


def check_same(mine: bytes, gather: Callable[[bytes], Sequence[bytes]], advice: str) -> None:
    """Compare all ranks' descriptions; every rank calls it.

    Args:
        mine: what `describe` made of this rank.
        gather: gives every rank's bytes, which may differ in length, in the order of ranks.
        advice: what to do when values alone differ.

    Raises:
        TrainingError: on every rank alike, naming the first difference and the ranks.
    """
    check_gathered(gather_where_different(mine, gather, _compared(mine)), advice)


def check_gathered(descriptions: Sequence[bytes], advice: str) -> None:
    """Compare what `describe` made on every rank, in the order of ranks; otherwise as `check_same`."""
    if len({_compared(each) for each in descriptions}) > 1:
        raise TrainingError(_difference([json.loads(each) for each in descriptions], advice))


def _compared(description: bytes) -> bytes:
    """Without what is there for errors alone."""
    found = json.loads(description)
    del found["names"]
    return json.dumps(found).encode()


def _difference(ranks: Sequence[dict[str, Any]], advice: str) -> str:
    for field in dict.fromkeys(field for each in ranks for field in each["settings"]):
        values = [each["settings"].get(field, _MISSING) for each in ranks]
        if odd_ranks(values):
            return f"{field} {_who(values)}: give every rank the same arguments"
    same_model = "every rank must build the same model and give the same parameters"
    rows = [each["parameters"] for each in ranks]
    for index in range(max(map(len, rows))):
        shared = [row[index][0] if index < len(row) else None for row in rows]
        names = [each["names"][index] if index < len(each["names"]) else _MISSING for each in ranks]
        if odd_ranks(shared):
            return f"parameter {index} {_who(names, shared)}: {same_model}"
        kinds = [row[index][1] for row in rows]
        if odd_ranks(kinds):
            return f"parameter {names[0]!r} {_who(kinds)}: {same_model}"
    for index, name in enumerate(ranks[0]["names"]):
        odd = odd_ranks([row[index][2] for row in rows])
        if odd:
            return f"parameter {name!r} has other values on {name_ranks(odd)} than on rank 0: {advice}"
    return "ranks differ"


def _who(values: Sequence[Any], compared: Sequence[Any] | None = None) -> str:
    """Who has which value; ranks are alike where what is compared is, which may be shown in several ways."""
    shown: dict[str, str] = {}
    keys = [json.dumps(each) for each in (values if compared is None else compared)]
    for key, value in zip(keys, values, strict=True):
        shown.setdefault(key, _show(value))
    return who_has_what([shown[key] for key in keys])


def _show(value: Any) -> str:
    return str(value) if value == _MISSING or str(value).startswith("shape ") else repr(value)
