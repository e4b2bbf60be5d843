"""Numbers among the arguments of a loop's parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hvdtrain.core.errors import SpecError


def check_counts(call: str, needed: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> None:
    """Refuse what is not an integer above 0.

    Args:
        call: what the user calls, for errors.
        needed: arguments by name.
        optional: those that may be None.

    Raises:
        SpecError: naming the argument.
    """
    given = {name: value for name, value in (optional or {}).items() if value is not None}
    for name, value in {**needed, **given}.items():
        if not isinstance(value, int) or value < 1:
            raise SpecError(f"{call}: {name}: expected an integer above 0 (found {value!r})")
