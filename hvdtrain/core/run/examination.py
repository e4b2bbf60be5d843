"""What is found out about a user's own model and loss before the first update."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np

from hvdtrain.core.data import Batch, eval_batches
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.custom import ModelSpec, unused_parameters
from hvdtrain.core.run.buffers import buffers_kept
from hvdtrain.core.run.run import Run

# Of one sample's loss in float32, alone and beside another, with which it may be padded.
_TOLERANCE = 1e-3


def examine(run: Run) -> None:
    """Try a user's model on two samples; every rank does the same, and weights and buffers stay as they are.

    Args:
        run: on this rank.

    Raises:
        SpecError: the loss is a mean over the batch, or the model, the data, the loss and the metrics do not
            fit.
        TrainingError: the loss does not depend on some weight.
    """
    model = run.spec.model
    if not isinstance(model, ModelSpec):
        return
    samples = list(range(min(2, len(run.dataset.train))))
    with buffers_kept(run):
        together = run.adapter.examine(_batch(run, samples))
        if len(samples) > 1:
            _refuse_mean([run.adapter.examine(_batch(run, [i])) for i in samples], together)
        unused = [] if model.find_unused_parameters else run.adapter.unused(_batch(run, samples))
    if unused:
        unused_parameters(unused)
    _evaluate_once(run)


def _evaluate_once(run: Run) -> None:
    """Evaluate this rank's first batch: what is wrong with it would come to light when training is over."""
    plan, validation = run.plan, run.dataset.validation
    if plan.validation_samples:
        per_device = plan.per_device_eval_batch_size
        batches = eval_batches(validation, per_device=per_device, rank=run.ranks.rank, size=run.ranks.size)
        for batch in islice(batches, 1):
            run.adapter.evaluate(batch)


def _batch(run: Run, indices: list[int]) -> Batch:
    return run.dataset.train.collate(np.array(indices, np.int64), 0, len(indices))


def _refuse_mean(alone: list[float], together: float) -> None:
    total = sum(alone)
    if not math.isfinite(total + together) or math.isclose(together, total, rel_tol=_TOLERANCE):
        return
    if math.isclose(together, total / 2.0, rel_tol=_TOLERANCE):
        raise SpecError(
            f"task.loss: what it returns for two examples adds up to {together:g}, the mean of what it "
            f"returns for each alone ({alone[0]:g} and {alone[1]:g}); return a loss for each example "
            "(reduction='none'), or their sum and how many there are"
        )
