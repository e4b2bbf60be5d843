"""A spec before it is validated: found, read as YAML, and overridden."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvdtrain.core.errors import SpecError
from hvdtrain.core.process.paths import user_path
from hvdtrain.core.spec.reference import add_import_folders
from hvdtrain.core.spec.yaml12 import MAX_CHARS, load_yaml

PACKAGED_SPECS = Path(__file__).resolve().parents[2] / "specs"


def read_spec(path: str | Path) -> dict[str, Any]:
    """The sections of a spec that is not validated yet.

    Args:
        path: as `load_spec`. Code that the spec names can be imported from the file's folder from now on.

    Raises:
        SpecError: the file cannot be read, or is no YAML mapping.
    """
    file = _find(path)
    if file.parent != PACKAGED_SPECS:
        # What the spec names may lie beside it, or where the command was started.
        add_import_folders((file.resolve().parent, Path.cwd()))
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(MAX_CHARS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"spec {path}: cannot be read as UTF-8 text: {error}") from None
    return mapping(text, str(path))


def mapping(text: str, where: str) -> dict[str, Any]:
    """The sections in a YAML text.

    Raises:
        SpecError: it is no YAML, or no mapping.
    """
    raw = load_yaml(text, where)
    if not isinstance(raw, dict):
        raise SpecError(f"{where}: expected a mapping of sections, found {type(raw).__name__}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one field of a spec that was read.

    Args:
        raw: the sections, which are changed.
        override: `field.path=value`; the value is read as YAML.

    Raises:
        SpecError: it is not of this form, or the path leads through what is no section.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise SpecError(f"--set {override}: expected field.path=value, such as optimizer.learning_rate=1e-4")
    *parents, leaf = name.strip().split(".")
    node = raw
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise SpecError(f"--set {override}: {parent} is {child!r}, not a section")
        node = child
    node[leaf] = load_yaml(text, f"--set {override}", positions=False)


def _find(path: str | Path) -> Path:
    file = user_path(path, "spec", SpecError)
    packaged = PACKAGED_SPECS / f"{path}.yaml"
    if file.is_file():
        return file
    if packaged.is_file():
        return packaged
    names = ", ".join(sorted(p.stem for p in PACKAGED_SPECS.glob("*.yaml")))
    raise SpecError(f"spec {path}: no such file, and no packaged spec of that name (packaged: {names})")
