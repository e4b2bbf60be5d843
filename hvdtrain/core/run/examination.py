"""What is found out about a user's own model and loss before the first update."""

from __future__ import annotations

from itertools import islice

import numpy as np

from hvdtrain.core.data import Batch, eval_batches
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.core.families.custom import ModelSpec, unused_parameters
from hvdtrain.core.run.buffers import passes_undone
from hvdtrain.core.run.run import Run

# Of one sample's loss in 16 bits, alone and beside another.
_TOLERANCE = 1e-3


def examine(run: Run) -> None:
    """Try a user's model on two samples; every rank does the same, and weights and buffers stay as they are.

    Args:
        run: on this rank.

    Raises:
        SpecError: the loss is a mean over the batch, the model, the data, the loss and the metrics do not
            fit, or the compression cannot do with what the loss says.
        TrainingError: the loss is not finite, or does not depend on some weight.
    """
    model = run.spec.model
    if not isinstance(model, ModelSpec):
        return
    samples = list(range(min(2, len(run.dataset.train))))
    with passes_undone(run):
        alone = [run.adapter.examine(_batch(run, [i])) for i in samples]
        _refuse_not_finite(alone, run.spec.rules.shards_weights)
        _refuse_mean(
            alone, run.adapter.examine(_batch(run, [0, 0])), run.adapter.examine(_batch(run, samples))
        )
        _refuse_early_divisor(run)
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


def _refuse_not_finite(losses: list[np.ndarray], gathers: bool) -> None:
    borrowed = (
        "; with zero_stage 3 a module has its own weights alone, those of another are NaN: call that module, "
        "do not take its weight, or choose zero_stage: 2"
    )
    for index, loss in enumerate(losses):
        if not np.isfinite(loss).all():
            raise TrainingError(
                f"task.loss: the loss of training sample {index} is {loss.sum():g} before any update: look "
                "for numbers that are not finite in data.dataset, and for divisions by 0 or logarithms of 0 "
                f"in the model and the loss{borrowed * gathers}"
            )


def _refuse_mean(alone: list[np.ndarray], twice: np.ndarray, together: np.ndarray) -> None:
    """Refuse a loss that is a mean over the batch.

    Args:
        alone: losses of batches of one sample.
        twice: of a batch that has the first of them twice.
        together: of a batch of all.
    """
    one, two = float(alone[0].sum()), float(twice.sum())
    if one and _equal(one, two):
        raise SpecError(
            f"task.loss: what it returns for one example is {one:g}, and for a batch that has this example "
            f"twice it adds up to {two:g}: it is a mean over the batch. Return a loss for each example "
            "(reduction='none'), or their sum and how many there are"
        )
    singles = [float(each.sum()) for each in alone]
    if len(together) > 1 and _equal(*together.tolist()) and not _equal(*singles):
        raise SpecError(
            f"task.loss: it returns {together[0]:g} for each of two examples, whose losses alone are "
            f"{singles[0]:g} and {singles[1]:g}: it is a mean over the batch. Return each example's own loss "
            "(reduction='none'), or their sum and how many there are"
        )


def _equal(ours: float, theirs: float) -> bool:
    return bool(np.isclose(ours, theirs, rtol=_TOLERANCE, atol=0.0))


def _refuse_early_divisor(run: Run) -> None:
    if run.adapter.model.weighs and any(policy.own_mean for policy in run.spec.rules.policies):
        raise SpecError(
            "compression.type: adasum combines gradients of each rank's own mean loss, and what a mean is "
            "divided by is known only after backward where task.loss returns a pair (sum, weight): return a "
            "loss for each example, or choose another type"
        )
