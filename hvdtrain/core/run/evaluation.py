"""Evaluating the validation split, and reading what compression policies have counted."""

from __future__ import annotations

import math

import numpy as np

from hvdtrain.core.data import eval_batches
from hvdtrain.core.run.run import Run


def evaluate(run: Run) -> dict[str, float | None]:
    """Evaluate the validation split, each sample exactly once over all ranks; every rank calls it.

    Returns:
        `eval_loss` (the sum over all ranks divided by the sum of weights), `eval_perplexity` (its
        exponential) and `eval_samples`; None for the first two where the sum of weights is 0, since then
        there is nothing to predict. Empty when there is no validation split.
    """
    if not run.plan.validation_samples:
        return {}
    batches = eval_batches(
        run.dataset.validation,
        per_device=run.plan.per_device_eval_batch_size,
        rank=run.ranks.rank,
        size=run.ranks.size,
    )
    sums = np.zeros(3)
    for batch in batches:
        sums += (run.adapter.loss_sum(batch), batch.weight, batch.counts["samples"])
    loss, weight, samples = run.ranks.sum(sums).tolist()
    mean = loss / weight if weight else None
    return {"eval_loss": mean, "eval_perplexity": _perplexity(mean), "eval_samples": int(samples)}


def compression_counters(run: Run) -> dict[str, float]:
    """What the policies have counted, summed over all ranks and buckets; every rank calls it.

    Returns:
        `wire_COUNTER` for each counter of a policy; empty where no policy counts anything.
    """
    policies = [run.spec.rules.policy(bucket) for bucket in run.plan.buckets]
    names = sorted({name for policy in policies for name in policy.counters})
    if not names:
        return {}
    states = run.adapter.reducer.read()
    own = np.array([sum(float(state.get(name, 0)) for state in states) for name in names])
    return {f"wire_{n}": c for n, c in zip(names, run.ranks.sum(own).tolist(), strict=True)}


def _perplexity(loss: float | None) -> float | None:
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return math.inf
