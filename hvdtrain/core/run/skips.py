"""Updates that are not applied: when a run with too many of them ends, and with which message.

There are two reasons. An update that is not finite is skipped on all ranks, and may lower the loss scale. An
update is *empty* where no rank has anything to predict: W is 0, and nothing can be divided by it. Nothing is
computed, sent or applied then; its samples are consumed, and the loss scale stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hvdtrain.core.data import Window
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.families.weights import trained
from hvdtrain.core.run.buffers import passes_undone
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.state import RunState
from hvdtrain.core.spec.job_spec import JobSpec


@dataclass(frozen=True)
class Streak:
    """Updates in a row that were not applied.

    Attributes:
        not_finite: those whose gradient was not finite.
        empty: those in which no rank had anything to predict.
    """

    not_finite: int = 0
    empty: int = 0

    def after(self, applied: bool, not_finite: int = 0, empty: int = 0) -> Streak:
        """The streak after some more updates.

        Args:
            applied: whether one of them was; it ends the streak.
            not_finite: how many were not finite.
            empty: how many were empty.
        """
        return Streak() if applied else Streak(self.not_finite + not_finite, self.empty + empty)

    def check(self, spec: JobSpec, step: int, grad_norm: float) -> None:
        """End a run that makes no progress.

        Args:
            spec: the job.
            step: the run's.
            grad_norm: of the last update that was not finite.

        Raises:
            TrainingError: when there are too many in a row, by their reason.
        """
        count = self.not_finite + self.empty
        if count < spec.max_skipped_updates:
            return
        where = f"{count} updates in a row after step {step}"
        if not self.not_finite:
            raise TrainingError(
                f"{where} had nothing to predict on any rank and were skipped (max_skipped_updates): "
                f"{spec.data.why_empty}, or take more samples into an update (batch)"
            )
        raise TrainingError(
            f"{where} had a gradient norm of {grad_norm} and were skipped (max_skipped_updates"
            + (f"; {self.empty} of them had nothing to predict" if self.empty else "")
            + "): training has diverged; lower optimizer.learning_rate, lengthen schedule.warmup_steps, or "
            "set a smaller max_grad_norm"
            + (", or a smaller loss_scale" if spec.mixed_precision == "fp16" else "")
        )


def check_scale(run: Run, state: RunState, window: Window, divisor: float, together: bool) -> None:
    """End a run whose loss scale would have to fall below its floor.

    Args:
        run: on this rank.
        state: before the update that was not finite.
        window: of that update.
        divisor: of that update.
        together: whether all ranks are here, so that they may tell each other.

    Raises:
        TrainingError: naming the first weight, in the order of backward, whose gradient is not finite.
    """
    scale = state.loss_scale
    if scale.can_fall:
        return
    assert scale.rule is not None
    with passes_undone(run):
        own = run.adapter.find_nonfinite(window, divisor, scale.value).astype(np.float64)
    found = run.ranks.sum(own) if together else own
    suspects = ["the loss", *(f"the gradient of {w.name}" for w in reversed(trained(run.weights)))]
    first = next((name for name, count in zip(suspects, found, strict=True) if count), "the sum over ranks")
    raise TrainingError(
        f"the update after step {state.step} is not finite at a loss scale of {scale.value:g} either, and "
        f"loss_scale.minimum is {scale.rule.minimum:g}: the first that is not finite is {first}. float16 "
        "cannot hold these numbers: set mixed_precision: bf16, or lower optimizer.learning_rate"
    )
