"""`model.init_from`: the architecture of a Hugging Face folder becomes the model section of a spec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import FAMILIES
from hvdtrain.core.process.paths import user_path
from hvdtrain.core.spec.sections import DataSection
from hvdtrain.core.tasks import TASKS

CONFIG_FILE = "config.json"
# Fields of any family that do not say what the weights are.
_FREE = {"model_type", "dtype", "init_from", "initializer_range"}


def with_pretrained(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the model section from the folder that it starts from, and the data section with what it needs.

    Args:
        raw: the sections of a spec, not validated.

    Returns:
        The sections. A field that the spec leaves out, or that is null, is the folder's.

    Raises:
        SpecError: the folder cannot be read, holds another family, computes what the family does not, or
            contradicts the spec.
    """
    model = raw.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("init_from"), str):
        return dict(raw)
    folder = user_path(model["init_from"], "model.init_from", SpecError)
    if not (folder / CONFIG_FILE).is_file() and model.keys() & {"torch", "tensorflow"}:
        return dict(raw)
    config = _read(folder)
    kind = config["model_type"]
    if kind == "custom":
        return dict(raw)
    if model.get("model_type", kind) != kind:
        raise SpecError(
            f"model.model_type: the spec says {model['model_type']!r}, and {folder / CONFIG_FILE} is of a "
            f"model of {kind!r}: leave one of them out"
        )
    family = FAMILIES.find(kind)
    config = getattr(family, "current_config", dict)(config)
    _check_fixed(folder, config, getattr(family, "FIXED", {}), kind)
    given = {name: value for name, value in model.items() if value is not None}
    task, heads = _task_name(raw, family), getattr(family, "HEAD_FIELDS", {})
    names = [name for name in family.ModelSpec.model_fields if name in config and name not in _FREE]
    fields = {name: config[name] for name in names if heads.get(name, task) == task}
    free = {*_FREE, *family.DROPOUT, *heads, *getattr(family, "FREE", ())}
    _check_given(folder, fields, given, free)
    section = TASKS.find(task).DataSpec
    return {
        **raw,
        "model": {"model_type": kind, **fields, **given},
        **_with_data(raw, section, folder),
    }


def other_head(folder: Path, model: Any) -> str | None:
    """What the head of a folder has otherwise than the model, such as `num_labels 2, not 5`; None: nothing.

    Args:
        folder: holds `config.json`.
        model: the section of a spec that starts from it.

    Raises:
        SpecError: the file cannot be read.
    """
    family = FAMILIES.find(model.model_type)
    config = getattr(family, "current_config", dict)(_read(folder))
    own = {name: getattr(model, name) for name in getattr(family, "HEAD_FIELDS", {})}
    differ = [n for n, value in own.items() if value is not None and config.get(n, value) != value]
    return ", ".join(f"{name} {config[name]}, not {own[name]}" for name in differ) or None


def _read(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"model.init_from: {path} cannot be read: {error.strerror}; every host needs a folder with it"
        ) from None
    except ValueError as error:
        raise SpecError(f"model.init_from: {path} is no JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SpecError(f"model.init_from: {path} has no model_type; expected a Hugging Face model")
    return config


def _check_fixed(folder: Path, config: Mapping[str, Any], fixed: Mapping[str, Any], kind: str) -> None:
    for name, value in fixed.items():
        if name in config and config[name] != value:
            raise SpecError(
                f"model.init_from: {folder / CONFIG_FILE} has {name} {config[name]!r}; the family {kind!r} "
                f"computes {name} {value!r} alone"
            )


def _check_given(folder: Path, fields: Mapping[str, Any], given: Mapping[str, Any], free: set[str]) -> None:
    differ = [name for name in fields if name in given and name not in free and given[name] != fields[name]]
    if differ:
        told = "; ".join(f"{name} {given[name]!r}, there {fields[name]!r}" for name in differ)
        raise SpecError(
            f"model: the spec contradicts {folder / CONFIG_FILE}: {told}. Leave these fields out (or set "
            "them to null): the folder's are taken"
        )


def _task_name(raw: Mapping[str, Any], family: Any) -> str:
    task = raw.get("task")
    found: str = (task.get("type") if isinstance(task, Mapping) else None) or family.TASKS[0]
    return found


def _with_data(raw: Mapping[str, Any], section: type[DataSection], folder: Path) -> dict[str, Any]:
    data = raw.get("data")
    if not isinstance(data, Mapping):
        return {}
    return {"data": {**section.of_pretrained(folder, data), **data}}
