"""A saved model, read back: the family's section from `config.json`, its weights and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from hvdtrain.core.checkpoints.model_folder import MODEL_DIR, WEIGHTS_FILE, load_model
from hvdtrain.core.data.tokenizer import tokenizer_from
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.families import FAMILIES, family_of
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.job_spec import spec_class
from hvdtrain.core.spec.problems import problems
from hvdtrain.core.spec.sections import ModelSection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONFIG_FILE, TOKENIZER_FILE = "config.json", "tokenizer.json"


@dataclass(frozen=True, eq=False)
class SavedModel:
    """What a job has saved.

    Attributes:
        directory: the folder that holds it.
        model: the hyper-parameters.
        weights: the family's table of weights.
        arrays: their values by name, in the Hugging Face layout.
        tokenizer: what it was trained with.
    """

    directory: Path
    model: Any
    weights: tuple[Weight, ...]
    arrays: Mapping[str, np.ndarray]
    tokenizer: Tokenizer


def open_model(directory: Path, task: str) -> SavedModel:
    """Open the model in a job's output directory, or in one of its `model` or `checkpoint-N` folders.

    Args:
        directory: either.
        task: what its family must be trained for.

    Raises:
        CheckpointError: there is no such folder, no model in it, a model for something else, or a file that
            is missing, damaged or of another model.
        DataError: `tokenizer.json` is not a tokenizer's.
    """
    folder = find_model(directory)
    model = read_model(folder)
    family = family_of(model)
    if task not in family.TASKS:
        raise CheckpointError(
            f"{folder}: a model of model_type {model.model_type} is trained for {', '.join(family.TASKS)}; "
            f"this needs one that is trained for {task}"
        )
    weights = family.weights(model)
    arrays = open_weights(folder, weights, model.dtype)
    path = folder / TOKENIZER_FILE
    return SavedModel(folder, model, weights, arrays, tokenizer_from(_read(path), path, field=""))


def open_weights(folder: Path, weights: Sequence[Weight], dtype: str) -> Mapping[str, np.ndarray]:
    """Open the weights of a saved model, each of which is read whenever it is asked for.

    Args:
        folder: holds `model.safetensors`.
        weights: those of the model of `config.json`.
        dtype: NumPy's name; theirs.

    Raises:
        CheckpointError: the file is missing or damaged, or a weight is missing or has another shape or dtype.
    """
    arrays = load_model(folder)
    for weight in weights:
        found = arrays.get(weight.name)
        if found is None or found.shape != weight.shape or found.dtype != dtype:
            told = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise CheckpointError(
                f"{folder / WEIGHTS_FILE}: {weight.name}: expected {dtype} {weight.shape}, as "
                f"{CONFIG_FILE} says, found {told}; take both files from one model"
            )
    return arrays


def read_model(directory: Path) -> ModelSection:
    """The hyper-parameters that `Family.hf_config` wrote.

    Args:
        directory: holds `config.json`.

    Raises:
        CheckpointError: the file cannot be read, or says something that the family's section has no field
            for: such a model would be computed otherwise.
    """
    path = directory / CONFIG_FILE
    try:
        config: Any = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path}: has no model_type; is this a model that a job has saved?")
    try:
        kind: Any = spec_class(config["model_type"]).model_fields["model"].annotation
        config = getattr(FAMILIES.find(config["model_type"]), "current_config", dict)(config)
    except SpecError as error:
        raise CheckpointError(f"{path}: {error}") from None
    # Neither changes what is computed.
    fields = {n: v for n, v in config.items() if n != "architectures" and not n.endswith("_token_id")}
    try:
        found: ModelSection = kind.model_validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {'; '.join(problems(error, kind))}") from None
    return found


def find_model(directory: Path) -> Path:
    """The folder of a saved model.

    Args:
        directory: a job's output directory, or one of its `model` or `checkpoint-N` folders.

    Raises:
        CheckpointError: there is no such folder, or no model in it.
    """
    for folder in (directory, directory / MODEL_DIR):
        if (folder / CONFIG_FILE).is_file():
            return folder
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder")
    raise CheckpointError(
        f"{directory}: holds no model: neither {CONFIG_FILE} nor {MODEL_DIR}/{CONFIG_FILE} is there; give a "
        f"job's output directory, its {MODEL_DIR}/ or a checkpoint-N/"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
