"""What a plan refuses, and what it tells because a user may not have meant it."""

from __future__ import annotations

from collections.abc import Sequence

from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.data.batches import TextFacts
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.accumulation import Accumulation
from hvdtrain.core.update.groups import check_groups

_MUCH_UNKNOWN = 0.01


def check(
    spec: JobSpec, weights: Sequence[Weight], train_samples: int, validation_samples: int, size: int
) -> None:
    """Refuse a job that cannot be trained.

    Args:
        spec: the job.
        weights: the model's.
        train_samples: sequences of the training split.
        validation_samples: sequences of the validation split.
        size: ranks.

    Raises:
        SpecError: there is nothing to train on, or nothing to find the best checkpoint by, the compression
            policy cannot be used with these weights or on so many ranks, a group of the optimizer has no
            weight, or weights are evaluated or saved while ranks have weights of their own.
    """
    if train_samples < 1:
        raise SpecError(
            "data: the training split is empty; give more text or a smaller data.validation_split"
        )
    if spec.checkpointing.best_metric and not validation_samples:
        raise SpecError(
            "checkpointing: the best checkpoint is found by the validation split, which is empty: give "
            "validation data, or set save_best and load_best_model_at_end to false"
        )
    spec.rules.check([w.name for w in weights])
    check_groups(spec.optimizer, [w.name for w in weights])
    spec.rules.check_ranks(size)
    period = spec.rules.period
    for name, every in _uses_of_weights(spec).items():
        if every is not None and every % period:
            raise SpecError(
                f"{name}: {every} is not a multiple of compression.sync_every {period}, and between "
                "exchanges each rank has weights of its own: choose a multiple, or null for the end alone"
            )


def check_micro_batches(spec: JobSpec, accumulation: Accumulation) -> None:
    """Refuse a policy with error feedback where each micro-batch is summed by itself.

    Args:
        spec: the job.
        accumulation: what its updates are made of.

    Raises:
        SpecError: a skipped update must leave the feedback as it was, and its micro-batches would change it.
    """
    one = accumulation.target_tokens is None and all(steps == 1 for _, steps in accumulation.stages)
    keeps = [p.type for p in spec.rules.policies if p.residuals and getattr(p, "use_error_feedback", True)]
    if spec.rules.shards_gradients and keeps and not one:
        raise SpecError(
            f"compression.type: {keeps[0]} remembers what a sum has lost, and with zero_stage 2 or 3 and "
            "accumulation each micro-batch is summed by itself: choose zero_stage: 1, type none, or "
            "use_error_feedback: false where the type has it"
        )


def notes_on_text(text: TextFacts | None) -> list[str]:
    """What to tell of a text that the tokenizer does not know well."""
    if text is None or text.unknown_share <= _MUCH_UNKNOWN:
        return []
    cure = (
        f"give a larger model.vocab_size (now {text.vocab_size:,})"
        if text.trained
        else "take a data.tokenizer_file that knows this text"
    )
    return [f"data: {text.unknown_share:.1%} of the text is [UNK], which is lost: {cure}"]


def notes_on_memory(spec: JobSpec) -> list[str]:
    """Whether freed memory goes back to the system."""
    if not spec.rules.shards_gradients:
        return []
    return ["zero_stage: large blocks of freed memory go back to the system at once, which takes time"]


def notes_on_updates(spec: JobSpec, accumulation: Accumulation, max_steps: int) -> list[str]:
    """Fields that have no effect in so many updates."""
    return [
        *_period_notes(spec),
        *(
            f"batch.gradient_accumulation_steps: from_step {start} is not reached: the run has {max_steps} "
            "updates"
            for start, _ in accumulation.stages
            if start >= max_steps
        ),
    ]


def _period_notes(spec: JobSpec) -> list[str]:
    """Fields that leave an overlapping policy no exchange to overlap."""
    policy = spec.rules.policies[0]
    if not isinstance(policy, Periodic) or not policy.background:
        return []
    return [
        f"compression.overlap: {name} {every} is compression.sync_every, so ranks wait for every exchange"
        for name, every in _uses_of_weights(spec).items()
        if every == policy.period
    ]


def _uses_of_weights(spec: JobSpec) -> dict[str, int | None]:
    """Fields that say after how many updates weights are evaluated or saved."""
    return {
        "evaluation.eval_steps": spec.evaluation.eval_steps,
        "checkpointing.save_steps": spec.checkpointing.save_steps,
    }
