"""What a run is made of: everything that stays as it is from the first update to the last."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hvdtrain.core.data.batches import Dataset
from hvdtrain.core.families.family import Family
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.adapter import Adapter
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.schedules import schedule_factor


@dataclass(frozen=True, eq=False)
class Run:
    """One run on this rank. What changes from update to update is its `RunState`, and what `adapter` holds.

    Attributes:
        spec: the job.
        plan: made from the spec for these ranks.
        ranks: all ranks of the job.
        dataset: the prepared data.
        family: the model's.
        weights: the model's, in the order of the forward pass.
        adapter: computes, in one framework.
        output_dir: where rank 0 writes; created when missing.
        framework: of this rank.
        snapshot_steps: updates from one snapshot to the next; None: there are none.
    """

    spec: JobSpec
    plan: Plan
    ranks: Ranks
    dataset: Dataset
    family: Family
    weights: tuple[Weight, ...]
    adapter: Adapter
    output_dir: Path
    framework: Framework
    snapshot_steps: int | None = None

    @property
    def wire_bytes(self) -> int:
        """Bytes of gradients and weights that this rank has handed to collectives so far."""
        return self.adapter.reducer.wire_bytes + self.adapter.optimizer.wire_bytes

    def learning_rate(self, step: int) -> float:
        """The learning rate of the update after so many steps."""
        plan = self.plan
        peak, warmup, last = plan.learning_rate, plan.warmup_steps, plan.max_steps
        return peak * schedule_factor(self.spec.schedule, step, warmup, last, peak)

    def evaluation_is_due(self, step: int) -> bool:
        """Whether the validation split is evaluated after this step, apart from the end of the run."""
        return _due(step, self.spec.evaluation.eval_steps)

    def checkpoint_is_due(self, step: int) -> bool:
        """Whether a checkpoint is saved after this step; where any are, one is saved at the end as well.

        By epochs and by time, `RunState.saving` says it.
        """
        saving = self.spec.checkpointing
        return _due(step, saving.save_steps) or (saving.saves and step == self.plan.max_steps)

    def epoch_ends(self, before: int, after: int) -> bool:
        """Whether checkpoints are saved by epochs, and one ends on the way.

        Args:
            before: samples consumed over all ranks.
            after: those a while later.
        """
        samples = self.plan.train_samples
        by_epoch = self.spec.checkpointing.save_strategy == "epoch"
        return by_epoch and after // samples > before // samples

    def snapshot_is_due(self, step: int) -> bool:
        """Whether a snapshot is taken after this step, but for the last one.

        In local updates only some steps can be saved: the next of them has it.
        """
        every = self.snapshot_steps
        if every is None:
            return False
        rules = self.spec.rules.at(step)
        return step // every > (step - (rules.period if rules.local else 1)) // every

    def weights_are_due(self, step: int) -> bool:
        """Whether the weights are evaluated or saved after this step."""
        due = self.evaluation_is_due(step) or self.checkpoint_is_due(step) or self.snapshot_is_due(step)
        return due or step == self.plan.max_steps


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
