"""When a run whose updates are not finite has to end, and what its person is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hvdtrain.core.data import Window
from hvdtrain.core.errors import TrainingError

if TYPE_CHECKING:
    from hvdtrain.core.training import BaseTrainer


def check_skips(trainer: BaseTrainer, in_a_row: int, grad_norm: float) -> None:
    """End a run that has diverged.

    Args:
        trainer: of this rank.
        in_a_row: updates skipped since the last applied one.
        grad_norm: of the last of them.

    Raises:
        TrainingError: when they are too many.
    """
    if in_a_row >= trainer.spec.max_skipped_updates:
        raise TrainingError(
            f"{in_a_row} updates in a row after step {trainer.step} had a gradient norm of "
            f"{grad_norm} and were skipped (max_skipped_updates): training has diverged; lower "
            "optimizer.learning_rate, lengthen schedule.warmup_steps, or set a smaller max_grad_norm"
            + (", or a smaller loss_scale" if trainer.spec.mixed_precision == "fp16" else "")
        )


def check_scale(trainer: BaseTrainer, window: Window, divisor: float, together: bool) -> None:
    """End a run whose loss scale would have to fall below its floor.

    Args:
        trainer: of this rank; its last update was skipped.
        window: of that update.
        divisor: of that update.
        together: whether all ranks are here, so that they may tell each other.

    Raises:
        TrainingError: naming the first weight, in the order of backward, whose gradient is not finite.
    """
    scale = trainer.loss_scale
    if scale.can_fall:
        return
    assert scale.rule is not None
    own = trainer.find_nonfinite(window, divisor, scale.value).astype(np.float64)
    found = trainer.sum_over_ranks(own) if together else own
    suspects = ["the loss", *(f"the gradient of {w.name}" for w in reversed(trainer.weights))]
    first = next((name for name, count in zip(suspects, found, strict=True) if count), "the sum over ranks")
    raise TrainingError(
        f"the update after step {trainer.step} is not finite at a loss scale of {scale.value:g} either, and "
        f"loss_scale.minimum is {scale.rule.minimum:g}: the first that is not finite is {first}. float16 "
        "cannot hold these numbers: set mixed_precision: bf16, or lower optimizer.learning_rate"
    )
