"""The values that a run starts from, which are rank 0's on every rank."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.pretrained import read_pretrained
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.families.custom import ModelSpec
from hvdtrain.core.families.weights import Weight, initial_weights
from hvdtrain.core.process.paths import user_path
from hvdtrain.core.run.output_dir import INITIAL_DIR
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.saving import save
from hvdtrain.core.run.streams import set_weights
from hvdtrain.core.spec.pretrained import other_head


def set_initial_values(run: Run) -> None:
    """Give every rank the values that the run starts from; every rank calls it.

    A packaged family's are drawn by the core, or read from a Hugging Face folder. A user's model has those
    that the user's code has made on rank 0, or those of a folder.

    Args:
        run: on this rank.

    Raises:
        CheckpointError: `model.init_from` cannot be read, or is of another model.
    """
    model = run.spec.model
    own = isinstance(model, ModelSpec)
    given: Mapping[str, np.ndarray] = {}
    if model.init_from is not None and run.ranks.is_chief:
        given = _of_folder(run, model.init_from) if own else _pretrained(run, model.init_from)

    def find(weight: Weight) -> np.ndarray:
        if weight.name in given:
            return given[weight.name]
        if own:
            return dict(run.adapter.model.read([weight]))[weight.name]
        return initial_weights([weight], run.spec.seed, model.dtype)[weight.name]

    # Ranks that hold shards alone took them of rank 0's model; it has no others.
    shared = own and run.spec.rules.shards_weights and model.init_from is None
    set_weights(run, find, [weight for weight in run.weights if weight.buffer or not shared])


def save_initial_values(run: Run) -> None:
    """Save the first weights of a user's model, which the spec cannot reproduce; every rank calls it.

    Args:
        run: on this rank, which has taken no update.

    Raises:
        CheckpointError: the disk is full or the directory cannot be written.
    """
    if isinstance(run.spec.model, ModelSpec):
        save(run, run.output_dir / INITIAL_DIR)


def _of_folder(run: Run, folder: str) -> Mapping[str, np.ndarray]:
    """The weights of a user's model, all of which the folder has to hold."""
    place = user_path(folder, "model.init_from", CheckpointError)
    try:
        given = load_model(place)
    except CheckpointError as error:
        raise CheckpointError(f"model.init_from: {error}") from None
    for weight in run.weights:
        shape = given.shapes.get(weight.name, "nothing")
        if shape != weight.shape:
            raise CheckpointError(
                f"model.init_from {folder}: {weight.name}: expected shape {weight.shape}, that of the model, "
                f"found {shape}; give a folder that a job with this model has saved"
            )
    return given


def _pretrained(run: Run, folder: str) -> Mapping[str, np.ndarray]:
    """What a saved model has; says which weights it has not."""
    path = user_path(folder, "model.init_from", CheckpointError)
    heads = getattr(run.family, "HEADS", ())
    other = other_head(path, run.spec.model)
    found = read_pretrained(path, run.weights, heads, run.spec.model.dtype, other_head=other is not None)
    drawn = [weight.name for weight in run.weights if weight.name not in found]
    if drawn:
        why = f"its head has {other}" if other else "has no such head"
        print(f"model.init_from {path}: {why}; drawn: {', '.join(drawn)}", flush=True)
    return found
