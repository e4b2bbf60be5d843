"""A run's whole state, gathered from all ranks and given back to as many as there are then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load, save

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.state import (
    Arrays,
    Position,
    TrainingState,
    layout_of,
    load_state,
    share_moments,
    share_out,
)
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.errors import CheckpointError

if TYPE_CHECKING:
    from hvdtrain.core.run.training import BaseTrainer


def gather_state(trainer: BaseTrainer) -> TrainingState:
    """Everything beside the weights, whole on rank 0 alone; a collective where ranks differ in some of it."""
    rules, buckets = trainer.spec.rules, trainer.plan.buckets
    states = zip(buckets, trainer.read_compression(), strict=True)
    scale = trainer.loss_scale
    moments, applied = _gather_moments(trainer)
    return TrainingState(
        Position(
            trainer.step,
            trainer.windows,
            trainer.samples_consumed,
            scale.value if scale.rule else 0.0,
            scale.good_updates,
            trainer.skipped_updates,
            trainer.empty_updates,
        ),
        moments,
        tuple(_gather(trainer, rules.policy(bucket), arrays) for bucket, arrays in states),
        layout_of(buckets, rules),
        _order(trainer),
        applied,
    )


def resume(trainer: BaseTrainer, directory: Path) -> None:
    """Give every rank what a checkpoint holds; only rank 0 needs to see the directory.

    Args:
        trainer: built, with any weights.
        directory: a `checkpoint-N`.

    Raises:
        CheckpointError: it is damaged, or belongs to another model, data set or compression.
    """
    state, weights = None, {}
    if trainer.world.is_chief:
        state, weights = load_state(directory), load_model(directory)
        _check(trainer, directory, state, weights)
    trainer.load_weights(_from_chief(trainer, weights))
    position = _from_chief(trainer, {"position": _numbers(state)})["position"]
    scale, good_updates, *counts = float(position[0]), *(int(n) for n in position[1:])
    trainer.step, trainer.windows, trainer.samples_consumed, *skips = counts
    trainer.skipped_updates, trainer.empty_updates = skips
    trainer.loss_scale = trainer.loss_scale.restored(scale, good_updates)
    _load_moments(trainer, state)
    buckets = trainer.plan.buckets
    saved = [_from_chief(trainer, state.compression[b.index] if state else {}) for b in buckets]
    rank, size = trainer.world.rank, trainer.world.size
    if any(saved):
        policies = [trainer.spec.rules.policy(b) for b in buckets]
        trainer.load_compression(
            [share_out(p, arrays, size)[rank] for p, arrays in zip(policies, saved, strict=True)]
        )


def _numbers(state: TrainingState | None) -> np.ndarray:
    found = state.position if state else Position(0, 0, 0)
    place = (found.step, found.windows, found.samples_consumed)
    # In float64 counts are exact up to 2^53.
    skips = (found.skipped_updates, found.empty_updates)
    return np.array([found.loss_scale, found.good_updates, *place, *skips], np.float64)


def _gather_moments(trainer: BaseTrainer) -> tuple[Arrays, tuple[int, ...]]:
    """The moments, and each rank's count of updates where the last one was local: there ranks differ."""
    if not trainer.spec.rules.at(trainer.step).local:
        return (trainer.read_moments() if trainer.world.is_chief else {}), ()
    counts = np.zeros(trainer.world.size)
    counts[trainer.world.rank] = trainer.applied
    applied = tuple(int(n) for n in trainer.sum_over_ranks(counts))
    return {name: _stack(trainer, array) for name, array in trainer.read_moments().items()}, applied


def _load_moments(trainer: BaseTrainer, state: TrainingState | None) -> None:
    rank, size = trainer.world.rank, trainer.world.size
    shares = share_moments(state, trainer.spec.rules, size) if state else []
    counts = _from_chief(trainer, {"applied": np.array([n for _, n in shares], np.int64)})["applied"]
    # One rank's after the other, so that nobody but rank 0 holds those of all.
    for index, count in enumerate(counts.tolist()):
        moments = _from_chief(trainer, shares[index][0] if shares else {})
        if len(counts) == 1 or index == rank:
            trainer.applied = count
            trainer.load_moments(moments, count)


def _gather(trainer: BaseTrainer, policy: Policy, arrays: Arrays) -> Arrays:
    return {n: _stack(trainer, a) if n in policy.residuals else a for n, a in arrays.items()}


def _stack(trainer: BaseTrainer, array: np.ndarray) -> np.ndarray:
    """Every rank's array on rank 0; on the others their own, for nobody asks them for more."""
    rows = []
    for rank in range(trainer.world.size):
        mine = array if rank == trainer.world.rank else np.zeros_like(array)
        found = trainer.sum_over_ranks(mine.reshape(-1)).reshape(array.shape)
        if trainer.world.is_chief:
            rows.append(found)
    return np.stack(rows) if rows else array


def _from_chief(trainer: BaseTrainer, arrays: Arrays) -> Arrays:
    """Rank 0's arrays; the others do not know their names and shapes."""
    message = np.frombuffer(save(arrays), np.uint8) if trainer.world.is_chief else np.zeros(0, np.uint8)
    size = int(trainer.broadcast(np.array([message.size], np.int64))[0])
    if not trainer.world.is_chief:
        message = np.zeros(size, np.uint8)
    return dict(load(trainer.broadcast(message.copy()).tobytes()))


def _order(trainer: BaseTrainer, fingerprint: str | None = None) -> str:
    return json.dumps({"seed": trainer.spec.seed, "data": fingerprint or trainer.dataset.fingerprint})


def _same_tokens(trainer: BaseTrainer, directory: Path, state: TrainingState) -> bool:
    """Whether a checkpoint's run had the same tokens, from a tokenizer file that only says it otherwise."""
    try:
        fingerprint = trainer.dataset.fingerprint_with(directory)
    except OSError:
        return False
    return state.order == _order(trainer, fingerprint)


def _check(trainer: BaseTrainer, directory: Path, state: TrainingState, weights: Arrays) -> None:
    shapes = {name: array.shape for name, array in weights.items()}
    for weight in (w for bucket in trainer.plan.buckets for w in bucket.weights):
        if shapes.get(weight.name) != weight.shape:
            raise CheckpointError(
                f"--resume {directory}: {weight.name} has shape {shapes.get(weight.name)} there and "
                f"{weight.shape} in the spec: resume with the model section it was trained with"
            )
    if state.order != _order(trainer) and not _same_tokens(trainer, directory, state):
        raise CheckpointError(
            f"--resume {directory}: its run had another seed or other data ({state.order}; now "
            f"{_order(trainer)}): samples would be repeated or left out; take its spec.json"
        )
    rules, buckets = trainer.spec.rules, trainer.plan.buckets
    if any(state.compression) and state.layout != layout_of(buckets, rules):
        raise CheckpointError(
            f"--resume {directory}: its residuals belong to another compression or other buckets: keep "
            "compression, communication.bucket_cap_mb and model.dtype as in its run's spec.json"
        )
