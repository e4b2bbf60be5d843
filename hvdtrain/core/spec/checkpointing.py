"""The section `checkpointing` of a spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdtrain.core.spec.sections import Count, EvaluationSpec, Section


class CheckpointingSpec(Section):
    """When checkpoints are saved and which are kept, by Hugging Face's names.

    The model is always saved at the end; where there are checkpoints, one is saved then, too.
    """

    save_strategy: Literal["steps", "epoch", "minutes"] = "steps"
    save_steps: Count | None = None
    save_minutes: Annotated[float, Field(gt=0.0)] | None = None
    async_save: bool = True
    save_total_limit: Count | None = None
    save_best: bool = False
    metric_for_best_model: str = "eval_loss"
    greater_is_better: bool | None = None
    load_best_model_at_end: bool = False

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints."""
        return self.save_strategy != "steps" or self.save_steps is not None

    @property
    def best_metric(self) -> str | None:
        """What the best checkpoint is best in, as a line of metrics.jsonl calls it; None: it is not kept."""
        if not (self.save_best or self.load_best_model_at_end):
            return None
        return f"eval_{self.metric_for_best_model.removeprefix('eval_')}"

    @property
    def greater_wins(self) -> bool:
        """Whether a greater metric is a better one."""
        if self.greater_is_better is None:
            return not self.metric_for_best_model.endswith(("loss", "perplexity"))
        return self.greater_is_better

    @model_validator(mode="after")
    def _consistent(self) -> CheckpointingSpec:
        for name, own in (("save_steps", "steps"), ("save_minutes", "minutes")):
            if getattr(self, name) is not None and self.save_strategy != own:
                raise ValueError(
                    f"{name} goes with save_strategy: {own} (found {self.save_strategy!r}): leave one of the "
                    "two out, or set it to null"
                )
        if self.save_strategy == "minutes" and self.save_minutes is None:
            raise ValueError("save_strategy: minutes needs save_minutes, from one checkpoint to the next")
        for name in ("save_total_limit", "save_best", "load_best_model_at_end"):
            if getattr(self, name) and not self.saves:
                raise ValueError(f"{name} needs checkpoints: give save_steps, or another save_strategy")
        return self


def check_best(saving: CheckpointingSpec, evaluation: EvaluationSpec, names: Sequence[str]) -> None:
    """Refuse a spec that looks for the best checkpoint where not all are measured.

    Args:
        saving: its section.
        evaluation: that of evaluations.
        names: of what an evaluation measures, without `eval_`.

    Raises:
        ValueError: there is no such metric, or checkpoints are saved where nothing is evaluated.
    """
    if saving.best_metric is None:
        return
    if saving.best_metric.removeprefix("eval_") not in names:
        raise ValueError(
            "checkpointing.metric_for_best_model: expected one of "
            f"{', '.join(f'eval_{name}' for name in names)} (found {saving.metric_for_best_model!r})"
        )
    steps, every = saving.save_steps, evaluation.eval_steps
    if steps is not None and (every is None or steps % every):
        raise ValueError(
            f"checkpointing.save_steps: {steps} with evaluation.eval_steps {every}: the best checkpoint is "
            "known only where each is evaluated: choose a multiple of evaluation.eval_steps"
        )
