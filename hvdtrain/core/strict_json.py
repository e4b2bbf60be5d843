"""JSON as its standard has it: every reader takes it, for what is not a finite number is null."""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict JSON.

    Args:
        value: of dicts, lists, tuples, texts and numbers, NumPy's scalars among them. NaN and infinities
            become null: RFC 8259 has no names for them; Python's own `json.dumps` writes some all the same.
        indent: spaces a level; None: all in one line.

    Returns:
        The text.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    # A NumPy scalar: `json` knows float64 alone, by its being a float.
    value = value.item() if hasattr(value, "dtype") and not getattr(value, "shape", ()) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
