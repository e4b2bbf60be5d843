"""The values that a run starts from, which are rank 0's on every rank."""

from __future__ import annotations

import numpy as np

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.pretrained import read_pretrained
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.families.custom import ModelSpec
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.process.paths import user_path
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.saving import save
from hvdtrain.core.spec.pretrained import other_head

# What a run of a user's model started from: its spec alone does not give it back.
INITIAL_DIR = "initial"


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
    if not isinstance(model, ModelSpec):
        run.adapter.model.write(_drawn(run))
        return
    found: dict[str, np.ndarray] = {}
    if run.ranks.is_chief or run.spec.rules.sharded:
        found = run.adapter.model.read()
    if run.ranks.is_chief and model.init_from is not None:
        found = _of_folder(model.init_from, found)
    run.adapter.model.write(run.ranks.broadcast_arrays(found))
    save(run, run.output_dir / INITIAL_DIR)


def _drawn(run: Run) -> dict[str, np.ndarray]:
    """Rank 0's initial weights by Hugging Face name, in the Hugging Face layout."""
    weights = run.weights
    arrays = initial_weights(weights, run.spec.seed, run.spec.model.dtype)
    if run.spec.model.init_from is not None and run.ranks.is_chief:
        arrays |= _pretrained(run, run.spec.model.init_from)
    flat = run.ranks.broadcast(np.concatenate([arrays[w.name].ravel() for w in weights]))
    parts = np.split(flat, np.cumsum([w.size for w in weights])[:-1])
    return {w.name: part.reshape(w.shape) for w, part in zip(weights, parts, strict=True)}


def _of_folder(folder: str, model: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    place = user_path(folder, "model.init_from", CheckpointError)
    try:
        given = load_model(place)
    except CheckpointError as error:
        raise CheckpointError(f"model.init_from: {error}") from None
    for name, array in model.items():
        shape = given[name].shape if name in given else "nothing"
        if shape != array.shape:
            raise CheckpointError(
                f"model.init_from {folder}: {name}: expected shape {array.shape}, that of the model, found "
                f"{shape}; give a folder that a job with this model has saved"
            )
    return {name: given[name].astype(array.dtype) for name, array in model.items()}


def _pretrained(run: Run, folder: str) -> dict[str, np.ndarray]:
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
