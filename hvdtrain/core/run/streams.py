"""Weights and moments as streams of arrays, of which every rank knows names, shapes, dtypes and order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hvdtrain.core.checkpoints.arrays import Kind
from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.run import Run


def weights_by_bucket(run: Run) -> list[Weight]:
    """All weights and buffers, in the order in which they come where they lie in buckets."""
    found = {weight.name: weight for bucket in reversed(run.plan.buckets) for weight in bucket.weights}
    return [*found.values(), *(weight for weight in run.weights if weight.name not in found)]


def weight_kinds(run: Run) -> dict[str, Kind]:
    """Of all weights and buffers, by name, in the order of `weights_by_bucket`."""
    return {weight.name: _kind(run, weight) for weight in weights_by_bucket(run)}


def moment_kinds(run: Run) -> dict[str, Kind]:
    """Of the optimizer's moments, as `WEIGHT.exp_avg`, in the order of `OptimizerState.read`."""
    moments, dtype = MOMENTS[run.spec.optimizer.type], np.dtype(run.spec.model.dtype)
    return {
        f"{weight.name}.{moment}": Kind(weight.shape, dtype)
        for bucket in run.plan.buckets
        for moment in moments
        for weight in bucket.weights
    }


def from_chief(ranks: Ranks, kind: Kind, find: Callable[[], np.ndarray]) -> np.ndarray:
    """An array of rank 0's on every rank; every rank calls it.

    Args:
        ranks: all of the job.
        kind: of the array; what is found is cast to its dtype.
        find: called on rank 0 alone.
    """
    return ranks.broadcast(find().astype(kind.dtype, copy=False) if ranks.is_chief else np.empty(*kind))


def set_weights(
    run: Run, find: Callable[[Weight], np.ndarray], weights: Sequence[Weight] | None = None
) -> None:
    """Give every rank rank 0's weights and buffers, one at a time; every rank calls it.

    Args:
        run: on this rank.
        find: an array in the Hugging Face layout; called on rank 0 alone.
        weights: some of them; None: all.
    """
    for weight in run.weights if weights is None else weights:
        array = from_chief(run.ranks, _kind(run, weight), partial(find, weight))
        run.adapter.model.write({weight.name: array})


def _kind(run: Run, weight: Weight) -> Kind:
    if not weight.buffer:
        return Kind(weight.shape, np.dtype(run.spec.model.dtype))
    # Buffers have dtypes of their own.
    ((_, array),) = run.adapter.model.read([weight])
    return Kind.of(array)
