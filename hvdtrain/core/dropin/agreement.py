"""What all ranks must have in common before the first reduction: settings, parameters, and their values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from hvdtrain.core.agreement import gather_where_different, name_ranks, odd_ranks, who_has_what
from hvdtrain.core.dropin.layout import Parameter
from hvdtrain.core.dropin.settings import Settings
from hvdtrain.core.errors import TrainingError


def digest(data: Any) -> str:
    """A short hash of a parameter's memory.

    Args:
        data: anything with a buffer, such as bytes or a contiguous NumPy array.
    """
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def describe(
    parameters: Sequence[Parameter], settings: Settings | None = None, digests: Sequence[str] | None = None
) -> bytes:
    """Put into bytes what a rank has, for `check_same`.

    Args:
        parameters: in their order.
        settings: of the wrapper, if they are to be compared.
        digests: of the parameters' values, if those are to be compared.
    """
    values = digests or [""] * len(parameters)
    rows = [
        [p.name, f"shape {list(p.shape)} {p.dtype}" + ("" if p.trainable else ", frozen"), value]
        for p, value in zip(parameters, values, strict=True)
    ]
    fields = settings.model_dump(mode="json") if settings else {}
    return json.dumps({"settings": fields, "parameters": rows}).encode()


def check_same(mine: bytes, gather: Callable[[bytes], Sequence[bytes]], advice: str) -> None:
    """Compare all ranks' descriptions; every rank calls it.

    Args:
        mine: what `describe` made of this rank.
        gather: gives every rank's bytes, which may differ in length, in the order of ranks.
        advice: what to do when values alone differ.

    Raises:
        TrainingError: on every rank alike, naming the first difference and the ranks.
    """
    check_gathered(gather_where_different(mine, gather), advice)


def check_gathered(descriptions: Sequence[bytes], advice: str) -> None:
    """Compare what `describe` made on every rank, in the order of ranks; otherwise as `check_same`."""
    if len(set(descriptions)) > 1:
        raise TrainingError(_difference([json.loads(each) for each in descriptions], advice))


def _difference(ranks: Sequence[dict[str, Any]], advice: str) -> str:
    for field in ranks[0]["settings"]:
        values = [each["settings"].get(field) for each in ranks]
        if odd_ranks(values):
            return f"{field} {_who(values)}: give every rank the same arguments"
    same_model = "every rank must build the same model and give the same parameters"
    rows = [each["parameters"] for each in ranks]
    for index in range(max(map(len, rows))):
        names = [row[index][0] if index < len(row) else None for row in rows]
        if odd_ranks(names):
            return f"parameter {index} {_who(names)}: {same_model}"
        kinds = [row[index][1] for row in rows]
        if odd_ranks(kinds):
            return f"parameter {names[0]!r} {_who(kinds)}: {same_model}"
    for index, (name, *_) in enumerate(rows[0]):
        odd = odd_ranks([row[index][2] for row in rows])
        if odd:
            return f"parameter {name!r} has other values on {name_ranks(odd)} than on rank 0: {advice}"
    return "ranks differ"


def _who(values: Sequence[Any]) -> str:
    return who_has_what([_show(value) for value in values])


def _show(value: Any) -> str:
    return "missing" if value is None else value if str(value).startswith("shape ") else repr(value)
