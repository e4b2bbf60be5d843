"""The folders that Hugging Face's `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvdtrain.core.data.lines import unreadable
from hvdtrain.core.errors import DataError

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def is_dataset_folder(folder: Path) -> bool:
    """Whether Hugging Face's `save_to_disk` has written it."""
    return any((folder / name).is_file() for name in (_STATE, _SPLITS))


def dataset_files(folder: Path, splits: Sequence[str | None], field: str) -> tuple[Path, ...]:
    """The Arrow files of a data set, in the order of its rows.

    Args:
        folder: written by `save_to_disk`.
        splits: which to take of a folder with several, the first that it has; None: no files then. A folder
            with one data set has that alone, which is no split: no files where None may be taken.
        field: of the spec, for errors.

    Raises:
        DataError: the folder is something else, lacks a split or a file, or has its rows in an order that
            only its indices say.
    """
    if (folder / _SPLITS).exists():
        there = _read(folder / _SPLITS, field).get("splits")
        if not isinstance(there, list) or not all(map(_is_plain, there)):
            raise DataError(f"{field}: {folder / _SPLITS}: expected splits: [names], found {there!r}")
        split = next((name for name in splits if name is None or name in there), "")
        if split == "":
            raise DataError(
                f"{field}: {folder} has no split {' or '.join(map(str, splits))} (splits here: "
                f"{', '.join(there) or 'none'}); name the folder of one, such as "
                f"{folder / (there or ['train'])[0]}"
            )
        return () if split is None else _shards(folder / split, field)
    return () if None in splits else _shards(folder, field)


def _shards(folder: Path, field: str) -> tuple[Path, ...]:
    if not (folder / _STATE).exists():
        raise DataError(
            f"{field}: the folder {folder} is no data set that save_to_disk of Hugging Face's datasets has "
            f"written (no {_STATE}); for a folder write DIR/*.txt, or another ending"
        )
    state = _read(folder / _STATE, field)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{field}: {folder} has the order of its rows in a file of indices; load it with "
            "datasets.load_from_disk, and save what flatten_indices() gives"
        )
    listed = state.get("_data_files")
    names = [each.get("filename") if isinstance(each, dict) else None for each in listed or ()]
    if not isinstance(listed, list) or not all(map(_is_plain, names)):
        raise DataError(f"{field}: {folder / _STATE}: expected _data_files: [{{filename: ...}}]")
    files = tuple(folder / str(name) for name in names)
    for path in files:
        if not path.exists():
            raise DataError(f"{field}: {folder}: {path.name} is missing, which {_STATE} names; copy it again")
    if not files:
        raise DataError(f"{field}: {folder} has no rows: its {_STATE} names no file")
    return files


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and bool(name) and Path(name).name == name


def _read(path: Path, field: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error, f"{field}: ") from None
    except ValueError as error:
        raise DataError(f"{field}: {path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{field}: {path}: expected a JSON object, found {type(found).__name__}")
    return found
