"""A saved model for use elsewhere: a folder or a file of its own, without what training needs beside it."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from hvdtrain.core.checkpoints.manifest import read_manifest, verify
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE, copy_files, load_model
from hvdtrain.core.checkpoints.saved_models import CONFIG_FILE, find_model, read_model
from hvdtrain.core.checkpoints.state import TRAINING_FILES
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.families import family_of
from hvdtrain.core.process.directories import replace_directory

KERAS_FILE = "model.keras"
# Writes what is exported into an empty folder.
_Write = Callable[[Path], object]


def export(directory: Path, target: str, output_dir: Path | None = None) -> str:
    """Export a saved model; a checkpoint's bytes are compared with its manifest first.

    Args:
        directory: a `checkpoint-N`, a job's `model`, or a job's output directory.
        target: one of `TARGETS`.
        output_dir: appears whole or not at all; None: beside the model's folder, with `-TARGET` behind its
            name.

    Returns:
        What was made and where, in a sentence.

    Raises:
        CheckpointError: there is no model, it is damaged, it cannot be exported so, or `output_dir` is there
            already or cannot be written.
        SpecError: the model is the user's own, and cannot be built.
    """
    manifest = read_manifest(directory)
    if manifest:
        verify(directory, manifest)
    folder = find_model(directory)
    place = output_dir or Path(f"{folder.resolve()}-{target}")
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise CheckpointError(f"{place}: is there already; give another --output-dir, or delete it first")
    write, told = TARGETS[target](folder)
    try:
        replace_directory(place, write)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be written: {error}; nothing is left there") from None
    step = f" of step {manifest.step}" if manifest else ""
    return f"exported the model{step} in {folder}: {told.format(place)}"


def _hugging_face(folder: Path) -> tuple[_Write, str]:
    load_model(folder)
    model, config = read_model(folder), json.loads((folder / CONFIG_FILE).read_bytes())
    if "architectures" not in config:
        raise CheckpointError(
            f"{folder}: Transformers has no model_type {model.model_type}; export --to safetensors or keras"
        )
    told = f"transformers.{config['architectures'][0]}.from_pretrained('{{}}') opens it"
    return lambda into: copy_files(folder, into, TRAINING_FILES), told


def _keras(folder: Path) -> tuple[_Write, str]:
    model = read_model(folder)
    module = getattr(family_of(model), "KERAS_MODEL", None)
    if module is None:
        raise CheckpointError(
            f"{folder}: model_type {model.model_type} has no Keras model (KERAS_MODEL of its family); export "
            "--to safetensors or huggingface"
        )
    built = importlib.import_module(module).build(model, folder)
    return lambda into: built.save(
        into / KERAS_FILE
    ), f"keras.saving.load_model('{{}}/{KERAS_FILE}') opens it"


def _safetensors(folder: Path) -> tuple[_Write, str]:
    weights = load_model(folder)
    return (
        lambda into: shutil.copyfile(folder / WEIGHTS_FILE, into / WEIGHTS_FILE),
        f"{{}}/{WEIGHTS_FILE} has its {len(weights)} arrays",
    )


# What makes a folder's content, and says what it is; each checks what it can before anything is written.
TARGETS = {"huggingface": _hugging_face, "keras": _keras, "safetensors": _safetensors}
