"""The weights of a Hugging Face folder, whoever has saved it, as those of a family."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

# Registers bfloat16 with NumPy, which safetensors asks for it.
import ml_dtypes  # noqa: F401
import numpy as np
from safetensors import SafetensorError, safe_open

from hvdtrain.core.checkpoints.model_folder import INDEX_FILE, WEIGHTS_FILE
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.families.weights import Weight

# As TensorFlow's checkpoints of 2018 called them, in folders that are still around.
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
_DTYPES = ("float16", "bfloat16", "float32", "float64")
# Of a layer, or of a stage of them.
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def read_pretrained(
    folder: Path, weights: Sequence[Weight], heads: Sequence[str], dtype: str, *, other_head: bool = False
) -> dict[str, np.ndarray]:
    """Read the weights of a model that Transformers, KerasHub's exporter or a job has saved.

    Args:
        folder: holds `model.safetensors`, or its shards and their index.
        weights: the family's.
        heads: beginnings of the names of weights that a model without a head does not have.
        dtype: NumPy's name; of the returned arrays.
        other_head: whether the folder's head is known to have other shapes.

    Returns:
        Arrays by name in the Hugging Face layout; those of a head that is not there, or is such another, are
        left out.

    Raises:
        CheckpointError: a file is missing or damaged, or a weight is missing or of another shape.
    """
    found: dict[str, np.ndarray] = {}
    with ExitStack() as stack:
        try:
            files = {file: stack.enter_context(safe_open(file, framework="np")) for file in _files(folder)}
            held = {name: opened for opened in files.values() for name in opened.keys()}  # noqa: SIM118
            for weight in weights:
                name = next((each for each in _names(weight.name) if each in held), None)
                if name is None:
                    _check_missing(folder, weight, heads)
                    continue
                array = held[name].get_tensor(name)
                if array.shape != weight.shape:
                    if other_head and weight.name.startswith(tuple(heads)):
                        continue
                    raise CheckpointError(
                        f"model.init_from {folder}: {name} has shape {array.shape}, and the model's "
                        f"{weight.name} {weight.shape}: config.json and the weights are of two models"
                    )
                _check_numbers(folder, name, array)
                found[weight.name] = array.astype(dtype)
            _check_depth(folder, weights, held)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"model.init_from {folder}: cannot be read: {error}") from None
    return found


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"model.init_from: {index} is no index of weights") from None
        files = [folder / name for name in dict.fromkeys(names.values())]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"model.init_from {folder}: {index.name} names {', '.join(missing)}, which is missing: copy "
                "the whole folder"
            )
        return files
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    if any((folder / name).is_file() for name in _PICKLES):
        raise CheckpointError(
            f"model.init_from {folder}: its weights are a pickle, which can run code when read. Convert it "
            'where you trust it:\n  python -c "from transformers import AutoModel; '
            f"AutoModel.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
        )
    raise CheckpointError(f"model.init_from {folder}: holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _names(name: str) -> Iterator[str]:
    """What a weight may be called: a base model is saved without the name of the part that it is."""
    for each in (name, name.partition(".")[2]):
        yield each
        for new, old in _OLD_NAMES.items():
            if each.endswith(new):
                yield each.removesuffix(new) + old


def _check_numbers(folder: Path, name: str, array: np.ndarray) -> None:
    if array.dtype.name not in _DTYPES:
        raise CheckpointError(
            f"model.init_from {folder}: {name} is {array.dtype}; expected one of {', '.join(_DTYPES)}"
        )
    if not np.isfinite(array).all():
        raise CheckpointError(
            f"model.init_from {folder}: {name} holds numbers that are not finite: the run that saved it has "
            "diverged, or the file is damaged; take another"
        )


def _check_depth(folder: Path, weights: Sequence[Weight], held: Collection[str]) -> None:
    """Refuse weights of a layer that the model does not have, where it has other layers of the kind."""
    known = {name for weight in weights for name in _names(weight.name)}
    kinds = {_NUMBER.sub("N", name) for name in known}
    more = sorted(name for name in held if name not in known and _NUMBER.sub("N", name) in kinds)
    if more:
        raise CheckpointError(
            f"model.init_from {folder}: has {more[0]}, and the model of config.json has no such layer: "
            "config.json and the weights are of two models"
        )


def _check_missing(folder: Path, weight: Weight, heads: Sequence[str]) -> None:
    if not weight.name.startswith(tuple(heads)):
        raise CheckpointError(
            f"model.init_from {folder}: has no weight {weight.name}; is it a model of this family?"
        )
