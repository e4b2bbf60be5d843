"""Evaluating the validation split, and reading what compression policies have counted."""

from __future__ import annotations

import numpy as np

from hvdtrain.core.data import eval_batches
from hvdtrain.core.run.run import Run
from hvdtrain.core.tasks import task_of


def evaluate(run: Run) -> dict[str, float | None]:
    """Evaluate the validation split, each sample exactly once over all ranks; every rank calls it.

    Returns:
        `eval_loss` (the sum over all ranks divided by the sum of weights), what the task makes of it, such as
        `eval_perplexity`, each metric of the task (a sum divided by a sum of weights, likewise) and
        `eval_samples`. A mean is None where its sum of weights is 0, since then there is nothing to predict.
        Empty when there is no validation split.
    """
    if not run.plan.validation_samples:
        return {}
    batches = eval_batches(
        run.dataset.validation,
        per_device=run.plan.per_device_eval_batch_size,
        rank=run.ranks.rank,
        size=run.ranks.size,
    )
    names = ["loss", *run.spec.task.metric_names]
    sums = np.zeros(2 * len(names) + 1)
    for batch in batches:
        sums += np.append(run.adapter.evaluate(batch), batch.counts["samples"])
    *pairs, samples = run.ranks.sum(sums).tolist()
    totals = zip(pairs[::2], pairs[1::2], strict=True)
    means = [total / weight if weight else None for total, weight in totals]
    found = {f"eval_{name}": mean for name, mean in zip(names, means, strict=True)}
    return found | task_of(run.spec.task).summarise(means[0]) | {"eval_samples": int(samples)}


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
