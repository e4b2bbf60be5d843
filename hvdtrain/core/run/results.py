"""What one update and one run produced."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.requests import NO_REQUESTS, Requests
from hvdtrain.core.run.state import RunState


@dataclass(frozen=True)
class UpdateResult:
    """What one update did, the same on every rank; or what one rank did alone, in a local update.

    Attributes:
        loss_sum: Σ_r Σ_m L(r,m), summed over all ranks (over this one alone in a local update).
        grad_norm: global L2 norm of G before clipping.
        applied: whether the weights changed; false when the norm was not finite, or W was 0.
        next_divisor: W of the next window; 0 after a local update, which asks nobody.
        tokens: non-padding input tokens, summed as the loss is.
        weight: Σ_r Σ_m w(r,m), what the loss sum is divided by, summed as the loss is. It is the divisor that
            the update was given, but where only the user's loss function knows it.
        requests: how many ranks have each; none after a local update, which asks nobody.
    """

    loss_sum: float
    grad_norm: float
    applied: bool
    next_divisor: float
    tokens: int
    weight: float
    requests: Requests = NO_REQUESTS


@dataclass(frozen=True)
class TrainingResult:
    """What a run produced.

    Attributes:
        state: where the run stands at its end.
        loss: mean loss of the last update, divided by its W; NaN where none was applied.
        eval_loss: mean loss of the validation split at the end; None without one, or where it has nothing to
            predict.
        model_dir: the saved model, in Hugging Face layout.
        seconds: wall time of training.
    """

    state: RunState
    loss: float
    eval_loss: float | None
    model_dir: Path
    seconds: float


def describe_skips(skipped: int, empty: int) -> str:
    """Updates that were not applied, in words, by their reason."""
    if not skipped:
        return ""
    return f"{skipped} skipped" + (f", {empty} of them with nothing to predict" if empty else "")


def describe_result(result: TrainingResult, plan: Plan) -> str:
    """What a run produced, in words."""
    state = result.state
    told = [f"{state.step} updates in {result.seconds:.1f} s"]
    if state.skipped_updates:
        told.append(describe_skips(state.skipped_updates, state.empty_updates))
    if not math.isnan(result.loss):
        told.append(f"loss {result.loss:.4f}")
    if result.eval_loss is not None:
        told.append(f"validation loss {result.eval_loss:.4f}")
    elif plan.validation_samples:
        told.append("no validation loss, for that split has nothing to predict")
    return ", ".join(told)
