"""Evaluating the validation split, and reading what compression policies have counted."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data import Batch, eval_batches
from hvdtrain.core.data.batches import Split
from hvdtrain.core.process.heartbeat import report_work
from hvdtrain.core.run.run import Run
from hvdtrain.core.tasks.measures import measures_of
from hvdtrain.core.tasks.task import Measures


def evaluate(run: Run) -> dict[str, float | None]:
    """Evaluate the validation split, each sample exactly once over all ranks; every rank calls it.

    Returns:
        What the task measures, by names that begin with `eval_`, such as `eval_loss` (the sum over all ranks
        divided by the sum of weights) and `eval_perplexity`, and `eval_samples`. A mean is None where its sum
        of weights is 0, since then there is nothing to predict. Empty when there is no validation split.
    """
    if not run.plan.validation_samples:
        return {}
    measures = measures_of(run.spec.task, run.spec.model)
    return report(measures, count(run, measures, run.dataset.validation))


def report(measures: Measures, sums: NDArray[np.float64]) -> dict[str, float | None]:
    """What an evaluation has found, by the names that a line of metrics.jsonl has.

    Args:
        measures: of the task.
        sums: what `count` returned.
    """
    found = {f"eval_{name}": mean for name, mean in measures.means(sums[:-1]).items()}
    return found | {"eval_samples": int(sums[-1])}


def count(run: Run, measures: Measures, split: Split) -> NDArray[np.float64]:
    """What an evaluation of a split adds up, over all ranks; every rank calls it.

    Args:
        run: on this rank.
        measures: of the spec's task.
        split: with at least one sample.

    Returns:
        The sums of `Measures.count`, and the number of samples behind them.
    """
    batches = eval_batches(
        split, per_device=run.plan.per_device_eval_batch_size, rank=run.ranks.rank, size=run.ranks.size
    )

    def counted(batch: Batch) -> NDArray[np.float64]:
        report_work()
        return np.append(measures.count(run.adapter, batch), batch.counts["samples"])

    return run.ranks.sum(functools.reduce(np.add, map(counted, batches)))


def compression_counters(run: Run) -> dict[str, float]:
    """What the policies have counted, summed over all ranks and buckets; every rank calls it.

    Returns:
        `wire_COUNTER` for each counter of a policy; empty where no policy counts anything.
    """
    policies = [run.spec.rules.policy(bucket) for bucket in run.plan.buckets]
    names = sorted({name for policy in policies for name in policy.counters})
    if not names:
        return {}
    own = np.sum([[float(s.get(n, 0)) for n in names] for s in run.adapter.reducer.read()], axis=0)
    return {f"wire_{n}": c for n, c in zip(names, run.ranks.sum(own).tolist(), strict=True)}
