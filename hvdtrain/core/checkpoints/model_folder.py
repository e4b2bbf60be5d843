"""Models on disk: a directory in Hugging Face layout that appears whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import ArrayStream, SavedArrays, write_arrays
from hvdtrain.core.checkpoints.manifest import MANIFEST_FILE, FileRecord, Manifest
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.directories import replace_directory

# Of a run's end, in its output directory.
MODEL_DIR = "model"
WEIGHTS_FILE, UNTRAINED_FILE = "model.safetensors", "untrained.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"


def save_model(
    directory: Path,
    streams: Mapping[str, ArrayStream],
    config: Mapping[str, Any],
    files: Mapping[str, str],
    manifest: Callable[[Mapping[str, FileRecord]], Manifest] | None = None,
    parts: Mapping[Path, FileRecord] | None = None,
) -> None:
    """Write `config.json`, files of arrays and other files, replacing an older model of the same name.

    Weights that were not trained lie in a file of their own, which an index names. KerasHub reads the index;
    Transformers reads `model.safetensors` where there is one, and would warn of weights it did not expect.

    Args:
        directory: appears only when everything in it is written and synced.
        streams: what each file of arrays is to hold, by the file's name, in the order of writing.
        config: the content of `config.json`.
        files: content of the files that belong to the model beside these, such as a tokenizer's, by name.
        manifest: makes the manifest of a checkpoint from the records of its files; it is written last.
        parts: what `write_own` has written; it moves into the directory.

    Raises:
        CheckpointError: when the disk is full or the directory cannot be written; nothing is left behind.
    """
    texts = {"config.json": _json(config), **files}
    if UNTRAINED_FILE in streams:
        texts[INDEX_FILE] = _index({name: streams[name] for name in (WEIGHTS_FILE, UNTRAINED_FILE)})
    with told(directory):
        write_directory(directory, streams, texts, manifest, parts or {})


def write_directory(
    directory: Path,
    streams: Mapping[str, ArrayStream],
    texts: Mapping[str, str],
    manifest: Callable[[Mapping[str, FileRecord]], Manifest] | None,
    parts: Mapping[Path, FileRecord],
) -> None:
    """Replace a directory by files of arrays and of text, the manifest last.

    Args:
        directory: as in `save_model`; `OSError` and `SafetensorError` leave it as it was, and pass.
        streams: as in `save_model`.
        texts: content of the others, by name.
        manifest: as in `save_model`.
        parts: as in `save_model`.
    """

    def write(into: Path) -> None:
        written = {part.name: record for part, record in parts.items()}
        for part in parts:
            part.rename(into / part.name)
        for name, stream in streams.items():
            written[name] = write_arrays(into / name, stream)
        for name, text in texts.items():
            content = text.encode()
            (into / name).write_bytes(content)
            written[name] = FileRecord.of(content)
        if manifest:
            (into / MANIFEST_FILE).write_text(manifest(written).text(), encoding="utf-8")

    try:
        replace_directory(directory, write)
    finally:
        for folder in {part.parent for part in parts}:
            shutil.rmtree(folder, ignore_errors=True)


def load_model(directory: Path, name: str = WEIGHTS_FILE) -> SavedArrays:
    """Open the weights that `save_model` wrote: those that are trained, or those in the file of this name.

    Raises:
        CheckpointError: when the file is missing or damaged.
    """
    try:
        return SavedArrays(directory / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / name}: cannot be read: {error}") from None


def copy_model(checkpoint: Path, directory: Path, others: Collection[str]) -> None:
    """Make the model of a checkpoint a directory of its own; as `save_model`.

    Args:
        checkpoint: a whole one.
        directory: as in `save_model`.
        others: as in `copy_files`.
    """
    with told(directory):
        replace_directory(directory, lambda into: copy_files(checkpoint, into, others))


def copy_files(folder: Path, into: Path, others: Collection[str]) -> None:
    """Copy the files of a model into an existing folder.

    Args:
        folder: has them.
        into: gets them.
        others: shell patterns of names of those that do not belong to the model.
    """
    for file in folder.iterdir():
        if not any(fnmatch(file.name, pattern) for pattern in others):
            shutil.copyfile(file, into / file.name)


@contextmanager
def told(directory: Path, what: str = "model", option: str = "--output-dir") -> Iterator[None]:
    """Make `OSError` and `SafetensorError` a message: what could not be saved, and which option to change."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory}: the {what} could not be saved: {error}; what was there before is as it was. "
            f"Free some space or choose another {option}"
        ) from None


def _index(files: Mapping[str, ArrayStream]) -> str:
    size = sum(kind.nbytes for stream in files.values() for kind in stream.kinds.values())
    found = {weight: name for name, stream in files.items() for weight in stream.kinds}
    return _json({"metadata": {"total_size": size}, "weight_map": found})


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
