"""What one rank will keep in memory, predicted from shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from hvdtrain.core.checkpoints.state import MOMENTS
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.families.family import Family
from hvdtrain.core.plan.peak import Peak, predict_peaks
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.tasks import task_of
from hvdtrain.core.update.accumulation import BatchSizes
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.gathers import plan_gathers
from hvdtrain.core.update.precision import compute_itemsize
from hvdtrain.core.update.shards import UNDER_WAY, Shard, scratch_elements


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank keeps; of ranks that differ, the one that keeps most.

    Attributes:
        weights: the masters, for the whole run; as all up to `compression`. Where they are sharded, also the
            layers in use.
        gradients: the buckets.
        optimizer: moments, and with LAMB the step of one slice of a bucket, which PyTorch keeps.
        compression: residuals and the like.
        activations: what a micro-batch's forward pass saves for its backward pass; None: not predicted.
        low_precision_weights: 16-bit copies of the weights of matrix products, made by every forward pass.
            The backward pass uses them, so all are kept, also where the weights themselves are sharded.
        checkpoint: the copy of a checkpoint that rank 0 writes in the background.
        peaks: of the process on a CPU, by framework; empty where activations are not predicted.
    """

    weights: int
    gradients: int
    optimizer: int
    compression: int
    activations: int | None
    low_precision_weights: int
    checkpoint: int
    peaks: Mapping[str, Peak] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The sum of what is kept in bytes, as far as it is predicted."""
        return sum(found for found in vars(self).values() if isinstance(found, int))


def gradient_elements(rules: Rules, shards: Sequence[Shard]) -> int:
    """Elements of the gradients that a rank holds at a time.

    Where they are sharded, those are its shards, one whole bucket that is filled, and those that are being
    summed: the largest.
    """
    if not rules.shards_gradients:
        return sum(shard.padded for shard in shards)
    whole = sorted((shard.padded for shard in shards), reverse=True)[: UNDER_WAY + 1]
    return sum(shard.size for shard in shards) + sum(whole)


def weight_elements(rules: Rules, shards: Sequence[Shard]) -> int:
    """Elements of the weights that a rank holds at a time.

    Where they are sharded, those are its shards, the layer in use and the one that is used next, at the two
    neighbours that have most.
    """
    if not rules.shards_weights:
        return sum(shard.padded for shard in shards)
    gathers = plan_gathers([shard.bucket for shard in shards])
    sizes = [sum(shards[index].padded for index in unit) for unit in gathers.units]
    order = (gathers.forward[0], *gathers.forward, *gathers.backward)
    in_use = max(sum(sizes[unit] for unit in {*pair}) for pair in pairwise(order))
    return sum(shard.size for shard in shards) + in_use


def predict_memory(
    spec: JobSpec, family: Family | None, buckets: Sequence[Bucket], batch: BatchSizes, size: int
) -> Memory:
    """What a rank of a job keeps at the end of a forward pass, and its peaks.

    Args:
        spec: the job.
        family: the model's; without one activations are not predicted.
        buckets: the layout of the gradients.
        batch: how the global batch is cut.
        size: ranks.
    """
    itemsize, compute = np.dtype(spec.model.dtype).itemsize, compute_itemsize(spec)
    shards = [spec.rules.shard(bucket, size, rank=0) for bucket in buckets]
    shapes = task_of(spec.task).shapes(spec.data, spec.task)
    kind = "checkpointed_bytes" if spec.gradient_checkpointing else "activation_bytes"
    saved: Callable[..., int | None] | None = getattr(family, kind, None)
    rows = batch.per_device_train_batch_size
    activations = saved and saved(spec.model, rows, shapes.length, shapes.predictions, compute)
    copies = compute * family.product_elements(spec.model) if family and compute != itemsize else 0
    found = Memory(
        weights=itemsize * weight_elements(spec.rules, shards),
        gradients=itemsize * gradient_elements(spec.rules, shards),
        optimizer=itemsize
        * (
            sum(shard.size for shard in shards) * len(MOMENTS[spec.optimizer.type])
            + scratch_elements(spec.optimizer, shards)
        ),
        compression=spec.rules.state_bytes(buckets, spec.model.dtype, size),
        activations=activations,
        low_precision_weights=copies,
        checkpoint=_checkpoint(spec, buckets),
    )
    if family is None or activations is None:
        return found
    peaks = predict_peaks(spec, family, shards, batch, found.total, activations)
    return replace(found, peaks=peaks)


def _checkpoint(spec: JobSpec, buckets: Sequence[Bucket]) -> int:
    """Bytes of the copy from which a checkpoint is written in the background."""
    if not (spec.checkpointing.saves and spec.checkpointing.async_save):
        return 0
    # What differs by rank, moments after local updates and the state of compression, is written at once.
    moments = 0 if spec.rules.at(1).local else len(MOMENTS[spec.optimizer.type])
    weights = np.dtype(spec.model.dtype).itemsize * sum(bucket.size for bucket in buckets)
    return weights * (1 + moments)
