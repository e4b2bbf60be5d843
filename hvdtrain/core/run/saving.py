"""Saving a run: its model, and in a checkpoint all that it needs to go on, gathered from all ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from hvdtrain.core.checkpoints.model_folder import save_model
from hvdtrain.core.checkpoints.state import Arrays, TrainingState, layout_of, save_state
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.state import RunState


def save(run: Run, directory: Path, training: TrainingState | None = None) -> None:
    """Write the model in Hugging Face layout, atomically; rank 0 alone writes.

    Args:
        run: on this rank.
        directory: replaced when it exists.
        training: what `--resume` needs beside the model.
    """
    if not (run.ranks.is_chief or run.spec.rules.sharded):
        return
    weights, model = run.adapter.model.read(), run.spec.model
    if not run.ranks.is_chief:
        return
    save_model(
        directory,
        weights | getattr(run.family, "counts", lambda model: {})(model),
        {**run.family.hf_config(model), **run.dataset.config},
        run.dataset.files,
        also=(lambda into: save_state(into, training)) if training else lambda into: None,
        untrained=initial_weights(run.family.untrained(model), run.spec.seed, model.dtype),
    )


def gather_training_state(run: Run, state: RunState) -> TrainingState:
    """Everything beside the weights, whole on rank 0 alone; every rank calls it.

    It is a collective where ranks differ in some of it: in residuals, or in moments after local updates.
    """
    rules, buckets = run.spec.rules, run.plan.buckets
    states = zip(buckets, run.adapter.reducer.read(), strict=True)
    moments, applied = _gather_moments(run, state)
    return TrainingState(
        replace(state, applied=0, loss_scale=state.loss_scale.saved()),
        moments,
        tuple(_gather(run.ranks, rules.policy(bucket), arrays) for bucket, arrays in states),
        layout_of(buckets, rules),
        order_of(run),
        applied,
    )


def order_of(run: Run, fingerprint: str | None = None) -> str:
    """A text that is equal where runs use the same samples in the same order.

    Args:
        run: on this rank.
        fingerprint: of the data; None: that of the run's own.
    """
    return json.dumps({"seed": run.spec.seed, "data": fingerprint or run.dataset.fingerprint})


def _gather_moments(run: Run, state: RunState) -> tuple[Arrays, tuple[int, ...]]:
    """The moments, and each rank's count of updates where the last one was local: there ranks differ."""
    ranks, optimizer = run.ranks, run.adapter.optimizer
    if not run.spec.rules.at(state.step).local:
        return (optimizer.read() if ranks.is_chief or run.spec.rules.sharded else {}), ()
    counts = np.zeros(ranks.size)
    counts[ranks.rank] = state.applied
    applied = tuple(int(n) for n in ranks.sum(counts))
    return {name: _stack(ranks, array) for name, array in optimizer.read().items()}, applied


def _gather(ranks: Ranks, policy: Policy, arrays: Arrays) -> Arrays:
    return {n: _stack(ranks, a) if n in policy.residuals else a for n, a in arrays.items()}


def _stack(ranks: Ranks, array: np.ndarray) -> np.ndarray:
    """Every rank's array on rank 0; on the others their own, for nobody asks them for more."""
    rows = []
    for rank in range(ranks.size):
        mine = array if rank == ranks.rank else np.zeros_like(array)
        found = ranks.sum(mine.reshape(-1)).reshape(array.shape)
        if ranks.is_chief:
            rows.append(found)
    return np.stack(rows) if rows else array
