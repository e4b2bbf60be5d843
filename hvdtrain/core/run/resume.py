"""Going on from a checkpoint: rank 0 reads it and gives the other ranks what they need."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.state import (
    MOMENTS,
    Arrays,
    TrainingState,
    layout_of,
    load_state,
    share_moments,
    share_out,
)
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.saving import order_of
from hvdtrain.core.run.state import RunState
from hvdtrain.core.update.precision import LossScale


def resume(run: Run, directory: Path) -> RunState:
    """Give every rank what a checkpoint holds; every rank calls it, and only rank 0 reads the directory.

    Args:
        run: on this rank; its adapter may hold any weights, and has those of the checkpoint afterwards.
        directory: a `checkpoint-N`.

    Returns:
        Where the run goes on.

    Raises:
        CheckpointError: it is damaged, or belongs to another model, data set or compression.
    """
    ranks, training, weights = run.ranks, None, {}
    if ranks.is_chief:
        training, weights = load_state(directory), load_model(directory)
        _check(run, directory, training, weights)
    run.adapter.model.write(ranks.broadcast_arrays(weights))
    numbers = ranks.broadcast_arrays({"position": _numbers(training.run if training else RunState())})
    state = _state(numbers["position"], LossScale.of_spec(run.spec))
    state = replace(state, applied=_load_moments(run, training))
    buckets = run.plan.buckets
    saved = [ranks.broadcast_arrays(training.compression[b.index] if training else {}) for b in buckets]
    if any(saved):
        policies = [run.spec.rules.policy(b) for b in buckets]
        shares = [share_out(p, arrays, ranks.size) for p, arrays in zip(policies, saved, strict=True)]
        run.adapter.reducer.write([share[ranks.rank] for share in shares])
    return state


def _numbers(state: RunState) -> np.ndarray:
    scale, place = state.loss_scale, (state.step, state.windows, state.samples_consumed)
    # In float64 counts are exact up to 2^53.
    skips = (state.skipped_updates, state.empty_updates)
    return np.array([scale.value, scale.good_updates, *place, *skips], np.float64)


def _state(numbers: np.ndarray, scale: LossScale) -> RunState:
    good_updates, step, windows, samples_consumed, skipped, empty = (int(n) for n in numbers[1:])
    return RunState(
        step=step,
        windows=windows,
        samples_consumed=samples_consumed,
        skipped_updates=skipped,
        empty_updates=empty,
        loss_scale=scale.restored(float(numbers[0]), good_updates),
    )


def _load_moments(run: Run, training: TrainingState | None) -> int:
    """Give every rank its moments; returns the updates that this rank's optimizer counts."""
    ranks, applied = run.ranks, 0
    shares = share_moments(training, run.spec.rules, ranks.size) if training else []
    counts = ranks.broadcast_arrays({"applied": np.array([n for _, n in shares], np.int64)})["applied"]
    # One rank's after the other, so that nobody but rank 0 holds those of all.
    for index, count in enumerate(counts.tolist()):
        moments = ranks.broadcast_arrays(shares[index][0] if shares else {})
        if len(counts) == 1 or index == ranks.rank:
            applied = count
            run.adapter.optimizer.write(moments, count)
    return applied


def _same_tokens(run: Run, directory: Path, training: TrainingState) -> bool:
    """Whether a checkpoint's run had the same tokens, from a tokenizer file that only says it otherwise."""
    try:
        fingerprint = run.dataset.fingerprint_with(directory)
    except OSError:
        return False
    return training.order == order_of(run, fingerprint)


def _check(run: Run, directory: Path, training: TrainingState, weights: Arrays) -> None:
    shapes = {name: array.shape for name, array in weights.items()}
    for weight in run.weights:
        if weight.name not in shapes:
            raise CheckpointError(
                f"--resume {directory}: it has no {weight.name}, which the model has: resume with the model "
                "section it was trained with (in the other framework, a model of your own needs model.names)"
            )
        if shapes[weight.name] != weight.shape:
            raise CheckpointError(
                f"--resume {directory}: {weight.name} has shape {shapes[weight.name]} there and "
                f"{weight.shape} in the spec: resume with the model section it was trained with"
            )
    _check_moments(run, directory, training)
    if training.order != order_of(run) and not _same_tokens(run, directory, training):
        raise CheckpointError(
            f"--resume {directory}: its run had another seed or other data ({training.order}; now "
            f"{order_of(run)}): samples would be repeated or left out; take its spec.json"
        )
    rules, buckets = run.spec.rules, run.plan.buckets
    if any(training.compression) and training.layout != layout_of(buckets, rules):
        raise CheckpointError(
            f"--resume {directory}: its residuals belong to another compression or other buckets: keep "
            "compression, communication.bucket_cap_mb and model.dtype as in its run's spec.json"
        )


def _check_moments(run: Run, directory: Path, training: TrainingState) -> None:
    kind, kept = run.spec.optimizer.type, MOMENTS[run.spec.optimizer.type]
    weights = [weight for bucket in run.plan.buckets for weight in bucket.weights]
    if {f"{weight.name}.{moment}" for weight in weights for moment in kept} - training.moments.keys():
        found = sorted({name.rpartition(".")[2] for name in training.moments})
        raise CheckpointError(
            f"--resume {directory}: optimizer.type {kind} goes on from {' and '.join(kept)} of each weight, "
            f"and there is {' and '.join(found)}: resume with the optimizer it was trained with"
        )
