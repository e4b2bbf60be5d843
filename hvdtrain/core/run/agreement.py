"""What ranks must have in common: compared between all of them, and told by name where they differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from hvdtrain.core.errors import TrainingError

# Gives every rank's bytes, which may differ in length, in the order of ranks.
Gather = Callable[[bytes], Sequence[bytes]]
_MOST_SHOWN = 10


def agree(fields: Mapping[str, Any], gather: Gather, advice: str, optional: Collection[str] = ()) -> None:
    """Compare values by name with those of the other ranks; every rank calls it.

    Args:
        fields: this rank's, JSON-ready. What lies in a mapping or a list is named `outer.inner`.
        gather: between all ranks.
        advice: what to do where something differs.
        optional: fields in which a rank that lacks them has no say.

    Raises:
        TrainingError: on every rank alike, naming each field that differs, the ranks and their values.
    """
    mine = json.dumps(flatten(fields)).encode()
    ranks = [json.loads(each) for each in gather_where_different(mine, gather)]
    names = dict.fromkeys(name for rank in ranks for name in rank)
    found = [line for name in names if (line := _difference(name, ranks, name in optional))]
    if found:
        more = [f"and {len(found) - _MOST_SHOWN} more"] if len(found) > _MOST_SHOWN else []
        lines = "".join(f"\n  {line}" for line in [*found[:_MOST_SHOWN], *more])
        raise TrainingError(f"ranks of this job differ:{lines}\n{advice}")


def gather_where_different(mine: bytes, gather: Gather, compared: bytes | None = None) -> Sequence[bytes]:
    """Every rank's bytes, in the order of ranks, or none where all are equal.

    Args:
        mine: this rank's.
        gather: between all ranks.
        compared: the part of them that must be equal; None: all.
    """
    # A few bytes first: descriptions of a large model on many ranks would be megabytes.
    hashes = gather(hashlib.blake2b(mine if compared is None else compared, digest_size=16).digest())
    return gather(mine) if len(set(hashes)) > 1 else ()


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings and lists by their path, as in `batch.global_batch_size`."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        inner = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(inner, Mapping) and inner:
            found |= flatten({str(key): each for key, each in inner.items()}, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def odd_ranks(values: Sequence[Any]) -> list[int]:
    """The ranks whose value is not rank 0's."""
    return [rank for rank, value in enumerate(values) if value != values[0]]


def who_has_what(values: Sequence[str | None]) -> str:
    """`is A on rank 0, but B on ranks 1, 3`: all ranks' values, which differ, in words; None: has no say."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        if value is not None:
            ranks.setdefault(value, []).append(rank)
    (first, having), *others = ranks.items()
    told = [f"{value} on {name_ranks(those)}" for value, those in others[:3]]
    return f"is {first} on rank {having[0]}, but {' and '.join(told)}" + (" and so on" if others[3:] else "")


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, or `ranks 1, 3`, at most eight of them by their numbers."""
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {shown}"


def _difference(name: str, ranks: Sequence[Mapping[str, Any]], optional: bool) -> str | None:
    lacking = None if optional else "missing"
    values = [json.dumps(rank[name]) if name in rank else lacking for rank in ranks]
    return f"{name} {who_has_what(values)}" if len({*values} - {None}) > 1 else None
