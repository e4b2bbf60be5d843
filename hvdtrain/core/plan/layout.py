"""Which buckets the gradients of a job lie in."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from hvdtrain.core.compression.rows import pays
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.tasks import task_of
from hvdtrain.core.update.accumulation import Accumulation
from hvdtrain.core.update.buckets import Bucket, plan_buckets

_MIB = 2**20


def lay_out_buckets(
    spec: JobSpec, weights: Sequence[Weight], accumulation: Accumulation
) -> tuple[Bucket, ...]:
    """The buckets of a job, in closing order.

    Args:
        spec: the job.
        weights: the model's trained weights in the order of the forward pass.
        accumulation: what each update is made of.
    """
    rules, itemsize = spec.rules, np.dtype(spec.model.dtype).itemsize
    most = _most_tokens(accumulation, task_of(spec.task).shapes(spec.data, spec.task).length)

    def touched_rows(weight: Weight) -> int | None:
        if not weight.lookup or most >= weight.shape[0] or rules.sharded:
            return None
        rows, columns = weight.shape
        return most if pays((rows, columns), most, itemsize, accumulation.size) else None

    def group(weight: Weight) -> Hashable:
        # A table that travels by rows on some numbers of ranks lies alone on all of them: a checkpoint's
        # residuals belong to buckets.
        return rules.apart(weight), weight.lookup and not rules.sharded

    cap_bytes = spec.communication.bucket_cap_mb * _MIB
    return plan_buckets(weights, itemsize, cap_bytes, group, touched_rows, rules.shards_weights)


def _most_tokens(accumulation: Accumulation, max_seq_length: int) -> int:
    """How many different tokens a rank can meet in one update, [PAD] included."""
    if accumulation.target_tokens is not None:
        return accumulation.target_tokens + max_seq_length + 1
    steps = max(steps for _, steps in accumulation.stages)
    return steps * accumulation.per_device * max_seq_length + 1
