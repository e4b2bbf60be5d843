"""Fields of a spec that stand for the user's code: a path in YAML, the object itself in Python."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, PlainSerializer, WithJsonSchema

from hvdtrain.core.registry import load_path


def resolve(reference: Any, field: str) -> Any:
    """The object that a reference stands for.

    Args:
        reference: a path as `package.module:name`, or the object.
        field: of the spec, for errors.

    Raises:
        SpecError: the path cannot be imported.
    """
    return load_path(reference, field) if isinstance(reference, str) else reference


def name_or_path(names: Sequence[str]) -> AfterValidator:
    """Accept, as a string, one of `names` or a path; what is no string is the user's object."""

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value in names:
            return value
        if ":" in value:
            return _is_path(value)
        near = difflib.get_close_matches(value, names, n=1, cutoff=0.4)
        raise ValueError(
            f"expected {', '.join(map(repr, names))}, or a path as 'package.module:name' (found {value!r})"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )

    return AfterValidator(check)


def describe(reference: Any) -> str | None:
    """A reference as JSON holds it: its path, or the module and name of an object."""
    if reference is None or isinstance(reference, str):
        return reference
    # A partial is what it calls; a generator has a name, but no module.
    while isinstance(reference, partial):
        reference = reference.func
    named = (
        reference
        if hasattr(reference, "__qualname__") and hasattr(reference, "__module__")
        else type(reference)
    )
    return f"{named.__module__}:{named.__qualname__}"


def add_import_folders(folders: Iterable[Path]) -> None:
    """Let paths be imported from folders, behind all that is importable already."""
    for folder in map(str, folders):
        if folder not in sys.path:
            sys.path.append(folder)


def _is_path(value: Any) -> Any:
    module, _, name = value.partition(":") if isinstance(value, str) else ("module", ":", "name")
    parts = [*module.split("."), *name.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f"expected a path as 'package.module:name' (found {value!r})")
    return value


Reference = Annotated[
    Any,
    AfterValidator(_is_path),
    PlainSerializer(describe, return_type=str | None),
    WithJsonSchema({"type": "string", "pattern": "^[^:]+:[^:]+$"}),
]
