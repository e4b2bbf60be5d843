"""What all ranks must have in common before the first update: the data and the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.weights import Weight, initial_weights

if TYPE_CHECKING:
    from hvdtrain.core.training import BaseTrainer


def check_data(trainer: BaseTrainer) -> None:
    """Compare this node's data with rank 0's.

    Raises:
        TrainingError: they differ.
    """
    mine = np.frombuffer(hashlib.sha256(trainer.dataset.fingerprint.encode()).digest(), dtype=np.int64)
    if not np.array_equal(mine, trainer.broadcast(mine.copy())):
        raise TrainingError(
            f"rank {trainer.world.rank}: this node prepared other data than rank 0's node "
            "(corpus, tokenizer or split differ; python-docs differs between Python versions): "
            "give every node the same files"
        )


def common_weights(trainer: BaseTrainer, weights: Sequence[Weight]) -> dict[str, np.ndarray]:
    """Rank 0's initial weights by Hugging Face name, in the Hugging Face layout."""
    arrays = initial_weights(weights, trainer.spec.seed, trainer.spec.model.dtype)
    flat = trainer.broadcast(np.concatenate([arrays[w.name].ravel() for w in weights]))
    parts = np.split(flat, np.cumsum([w.size for w in weights])[:-1])
    return {w.name: part.reshape(w.shape) for w, part in zip(weights, parts, strict=True)}
