"""Shell patterns of weight names, as the spec's `match` fields have them: the first that fits counts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from hvdtrain.core.errors import SpecError


def first_match(patterns: Sequence[str], name: str) -> int:
    """The place of the first pattern that fits a name; the number of patterns where none does."""
    return next((i for i, pattern in enumerate(patterns) if fnmatchcase(name, pattern)), len(patterns))


def check_matches(patterns: Sequence[str], names: Sequence[str], field: Callable[[int], str]) -> None:
    """Refuse a pattern that no weight is left to.

    Args:
        patterns: in the order of the spec.
        names: of all the model's weights.
        field: the path in the spec of a pattern, by its place.

    Raises:
        SpecError: naming the pattern, and a weight that looks like it.
    """
    used = {first_match(patterns, name) for name in names}
    for index, pattern in enumerate(patterns):
        if index in used:
            continue
        if any(fnmatchcase(name, pattern) for name in names):
            problem = "every weight it matches is taken by an entry before it: put it first"
        else:
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)[0]
            problem = f"no weight of the model has such a name; the nearest is {near!r}"
        raise SpecError(f"{field(index)}: {pattern!r}: {problem}")
