"""What is wrong with a spec or a section, in the words of the user's file."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hvdtrain.core.spec.sections import FORMS


def problems(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """What is wrong with each field: its value, what was expected and the nearest valid name.

    Args:
        error: raised by a validation of `root`.
        root: a spec, or a section by itself.
    """
    return [_describe(e, root) for e in error.errors(include_url=False)]


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold, by its annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return list(dict.fromkeys(m for inner in typing.get_args(annotation) for m in models_of(inner)))


def _describe(error: ErrorDetails, root: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join(_walk(location, root)[0]) or "spec"
    if error["type"] == "union_tag_invalid":
        return _describe_tag(path, error)
    if error["type"] == "extra_forbidden":
        _, valid = _walk(location[:-1], root)
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid names here: {', '.join(valid)}"
        return f"{path}: unknown key (value {error['input']!r}); {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}"
    if error["type"] == "union_tag_not_found":
        return f"{path}.type: required, but not given"
    if error["type"] == "missing":
        return f"{path}: required, but not given"
    message = message.replace("Input should be ", "expected ", 1)
    if error["type"] == "literal_error":
        message = _choices(error["ctx"]["expected"])
    elif error["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        message = message.replace("expected ", "expected a number ", 1)
    return f"{path}: {message} (found {error['input']!r}){_near_literal(error)}{_hint(error)}"


def _choices(expected: str) -> str:
    """Pydantic's `'a', 'b' or 'c'` in the words of the other errors."""
    names = re.findall(r"'([^']+)'", expected)
    return f"expected one of {', '.join(names)}" if len(names) > 1 else f"expected {expected}"


def _describe_tag(path: str, error: ErrorDetails) -> str:
    expected = re.findall(r"'([^']+)'", error["ctx"]["expected_tags"])
    near = difflib.get_close_matches(error["ctx"]["tag"], expected, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{path}.type: expected one of {', '.join(expected)} (found {error['ctx']['tag']!r}){hint}"


def _hint(error: ErrorDetails) -> str:
    found = error["input"]
    if error["type"] in ("tuple_type", "list_type") and isinstance(found, str):
        return f"; write a list: [{json.dumps(found, ensure_ascii=False)}]"
    if error["type"] in ("dict_type", "model_type") and isinstance(found, str):
        return f"; write a section: {{type: {found}}}"
    if error["type"] == "bool_type" and str(found).lower() in ("yes", "no", "on", "off"):
        return "; write true or false"
    return ""


def _near_literal(error: ErrorDetails) -> str:
    expected = re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(error["input"]), expected, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def _walk(location: Sequence[str], root: type[BaseModel]) -> tuple[list[str], list[str]]:
    """A pydantic location as the user wrote it, and the names that are valid there.

    A section that comes in several types has the type behind its name in pydantic's location, and one that
    may be a list has its form there as well.
    """
    path: list[str] = []
    models: list[type[BaseModel]] = [root]
    for part in location:
        if part in FORMS:
            continue
        if part.isdigit():
            path.append(part)
            continue
        if len(models) > 1:
            models = [model for model in models if model.model_fields["type"].default == part]
            continue
        path.append(part)
        field = models[0].model_fields.get(part) if models else None
        models = models_of(field.annotation) if field else []
    return path, sorted({name for model in models for name in model.model_fields})
