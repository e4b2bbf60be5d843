"""The plan: every number a run will use, computed from the spec before anything starts."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.batches import TextFacts
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.family import Family
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.checks import (
    check,
    check_micro_batches,
    notes_on_memory,
    notes_on_text,
    notes_on_updates,
)
from hvdtrain.core.plan.layout import lay_out_buckets
from hvdtrain.core.plan.memory import Memory, predict_memory
from hvdtrain.core.plan.updates import Updates, count_updates
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec
from hvdtrain.core.tasks import task_of
from hvdtrain.core.update.accumulation import Accumulation, BatchSizes
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.groups import setting_of
from hvdtrain.core.update.precision import compute_dtype, cpu_notes
from hvdtrain.core.update.schedules import check_peak

# Horovod negotiates every cycle, also while idle: its default of 1 ms takes a tenth of two busy cores.
CYCLE_TIME_MS = 10.0


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        size: ranks.
        batch: how the global batch is cut; where it changes, the last stage's, or what is to be expected.
        accumulation: what each update is made of.
        train_samples: sequences of the training split.
        validation_samples: sequences of the validation split.
        updates_per_epoch: updates that use every training sample once, in the first epoch; the last may be
            smaller.
        max_steps: updates of the whole run.
        warmup_steps: updates of warm-up.
        learning_rate: peak, scaled with the world when asked for.
        per_device_eval_batch_size: rows of one evaluation batch on one rank.
        parameters: trainable elements.
        decayed_parameters: those that weight decay applies to.
        buckets: gradient buckets in closing order.
        bucket_compression: the type of each bucket's compression policy.
        wire_bytes_per_update: bytes one rank hands to collectives in one update, once compression has warmed
            up; where ranks exchange their weights now and then, in an update that does.
        sync_every: updates from one exchange between ranks to the next.
        flops_per_update: floating-point operations of an update's matrix products on one rank, forward and
            backward; None: not predicted.
        compute_dtype: of matrix products.
        memory: per rank.
        threads: compute threads per rank.
        cycle_time_ms: Horovod's coordination cycle, unless HOROVOD_CYCLE_TIME is set.
        text: how the text was tokenised; None where the data is not text.
        notes: what a user may not have meant.
    """

    size: int
    batch: BatchSizes
    accumulation: Accumulation
    train_samples: int
    validation_samples: int
    updates_per_epoch: int
    max_steps: int
    warmup_steps: int
    learning_rate: float
    per_device_eval_batch_size: int
    parameters: int
    decayed_parameters: int
    buckets: tuple[Bucket, ...]
    bucket_compression: tuple[str, ...]
    wire_bytes_per_update: int
    sync_every: int
    flops_per_update: int | None
    compute_dtype: str
    memory: Memory
    threads: int
    cycle_time_ms: float
    text: TextFacts | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready values; a bucket is shown by its weights' names and its size."""
        found = asdict(self)
        found["memory"]["total"] = self.memory.total
        found["buckets"] = [
            {"elements": b.size, "compression": c, "weights": [w.name for w in b.weights]}
            for b, c in zip(self.buckets, found.pop("bucket_compression"), strict=True)
        ]
        return found


def make_plan(
    spec: JobSpec,
    weights: Sequence[Weight],
    *,
    size: int,
    threads: int,
    train_tokens: NDArray[np.int64],
    validation_samples: int,
    family: Family | None = None,
    cpu_flags: Collection[str] = (),
    text: TextFacts | None = None,
) -> Plan:
    """Compute every number of a run.

    Args:
        spec: the job.
        weights: the model's weights in the order of the forward pass.
        size: ranks.
        threads: compute threads per rank.
        train_tokens: tokens of each sequence of the training split, int64 (train_samples,).
        validation_samples: sequences of the validation split.
        family: the model's; without one activations are not predicted.
        cpu_flags: of the hosts' CPUs, where it is CPUs that compute.
        text: how the text was tokenised; None where the data is not text.

    Returns:
        The frozen plan.

    Raises:
        SpecError: when the batch does not divide, there is nothing to train on, or nothing to find the best
            checkpoint by, so many ranks cannot use the compression policy, a group of the optimizer has no
            weight, or the learning rate would rise after warm-up.
    """
    check(spec, weights, len(train_tokens), validation_samples, size)
    updates = count_updates(spec, train_tokens, size)
    check_micro_batches(spec, updates.accumulation)
    return _plan(
        spec,
        weights,
        updates,
        family,
        size=size,
        threads=threads,
        train_samples=len(train_tokens),
        validation_samples=validation_samples,
        text=text,
        notes=(
            *notes_on_text(text),
            *spec.rules.not_yet(updates.max_steps),
            *notes_on_updates(spec, updates.accumulation, updates.max_steps),
            *notes_on_memory(spec),
            *cpu_notes(spec, cpu_flags),
        ),
    )


def _plan(
    spec: JobSpec,
    weights: Sequence[Weight],
    updates: Updates,
    family: Family | None,
    *,
    size: int,
    threads: int,
    train_samples: int,
    validation_samples: int,
    text: TextFacts | None,
    notes: tuple[str, ...],
) -> Plan:
    rules, batch, rows = spec.rules, updates.batch, updates.batch.per_device_train_batch_size
    itemsize = np.dtype(spec.model.dtype).itemsize
    buckets = lay_out_buckets(spec, weights, updates.accumulation)
    return Plan(
        size=size,
        batch=batch,
        accumulation=updates.accumulation,
        train_samples=train_samples,
        validation_samples=validation_samples,
        updates_per_epoch=updates.updates_per_epoch,
        max_steps=updates.max_steps,
        warmup_steps=warmup_updates(spec, updates.max_steps),
        learning_rate=check_peak(spec.schedule, peak_learning_rate(spec.optimizer, size)),
        per_device_eval_batch_size=spec.evaluation.per_device_eval_batch_size or rows,
        parameters=sum(w.size for w in weights),
        decayed_parameters=sum(w.size for w in weights if setting_of(spec.optimizer, w).weight_decay),
        buckets=buckets,
        bucket_compression=tuple(rules.policy(b).type for b in buckets),
        wire_bytes_per_update=rules.wire_bytes(
            buckets, itemsize, size, updates.batch.gradient_accumulation_steps
        ),
        sync_every=rules.period,
        flops_per_update=_flops(spec, family, batch),
        compute_dtype=compute_dtype(spec),
        memory=predict_memory(spec, family, buckets, batch, size),
        threads=threads,
        cycle_time_ms=spec.communication.cycle_time_ms or CYCLE_TIME_MS,
        text=text,
        notes=notes,
    )


def _flops(spec: JobSpec, family: Family | None, batch: BatchSizes) -> int | None:
    if family is None:
        return None
    shapes = task_of(spec.task).shapes(spec.data, spec.task)
    samples = batch.per_device_train_batch_size * batch.gradient_accumulation_steps
    each = family.flops(spec.model, shapes.length, shapes.predictions)
    return None if each is None else samples * each


def warmup_updates(spec: JobSpec, max_steps: int) -> int:
    """Updates of warm-up in a run of `max_steps`.

    Raises:
        SpecError: when there are more of them than of the run.
    """
    warmup = spec.schedule.warmup_steps
    if warmup is None:
        warmup = math.ceil((spec.schedule.warmup_ratio or 0.0) * max_steps)
    if warmup > max_steps:
        raise SpecError(f"schedule.warmup_steps: {warmup} exceeds the run's {max_steps} updates (max_steps)")
    return warmup


def peak_learning_rate(optimizer: OptimizerSpec, size: int) -> float:
    """The learning rate after warm-up, scaled with the number of ranks when asked for."""
    factor = {"none": 1.0, "linear": float(size), "sqrt": math.sqrt(size)}[optimizer.learning_rate_scaling]
    return optimizer.learning_rate * factor
