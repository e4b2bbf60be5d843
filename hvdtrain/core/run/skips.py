"""Updates that are not applied: when a run with too many of them ends, and with which message.

There are two reasons. An update that is not finite is skipped on all ranks, and may lower the loss scale. An
update is *empty* where no rank has anything to predict: W is 0, and nothing can be divided by it. Nothing is
computed, sent or applied then; its samples are consumed, and the loss scale stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hvdtrain.core.data import Window
from hvdtrain.core.errors import TrainingError

if TYPE_CHECKING:
    from hvdtrain.core.run.training import BaseTrainer


@dataclass
class Streak:
    """Updates in a row that were not applied.

    Attributes:
        not_finite: those whose gradient was not finite.
        empty: those in which no rank had anything to predict.
    """

    not_finite: int = 0
    empty: int = 0

    def add(self, not_finite: int = 0, empty: int = 0) -> None:
        """Count some more."""
        self.not_finite, self.empty = self.not_finite + not_finite, self.empty + empty

    def end(self) -> None:
        """An update was applied."""
        self.not_finite = self.empty = 0

    def check(self, trainer: BaseTrainer, grad_norm: float) -> None:
        """End a run that comes no further.

        Args:
            trainer: of this rank.
            grad_norm: of the last update that was not finite.

        Raises:
            TrainingError: when there are too many in a row, by their reason.
        """
        count, spec = self.not_finite + self.empty, trainer.spec
        if count < spec.max_skipped_updates:
            return
        where = f"{count} updates in a row after step {trainer.step}"
        if not self.not_finite:
            raise TrainingError(
                f"{where} had nothing to predict on any rank and were skipped (max_skipped_updates): their "
                "text has no token that the tokenizer knows; give other data.files, a data.tokenizer_file "
                "that fits them or a larger model.vocab_size, or take more samples into an update (batch)"
            )
        raise TrainingError(
            f"{where} had a gradient norm of {grad_norm} and were skipped (max_skipped_updates"
            + (f"; {self.empty} of them had nothing to predict" if self.empty else "")
            + "): training has diverged; lower optimizer.learning_rate, lengthen schedule.warmup_steps, or "
            "set a smaller max_grad_norm"
            + (", or a smaller loss_scale" if spec.mixed_precision == "fp16" else "")
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
