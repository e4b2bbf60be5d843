"""The training loop, once for both: the adapters supply one update, one evaluation batch and collectives."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from hvdtrain.core.checkpoints.model_folder import save_model
from hvdtrain.core.checkpoints.resume import gather_state, resume
from hvdtrain.core.checkpoints.state import TrainingState, save_state
from hvdtrain.core.data import Batch, Dataset, Prefetcher, Window, eval_batches, train_windows
from hvdtrain.core.families.family import Family
from hvdtrain.core.families.weights import Weight, initial_weights
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.adapter import Adapter
from hvdtrain.core.run.joint_updates import Line, joint_updates
from hvdtrain.core.run.local_updates import local_updates
from hvdtrain.core.run.metrics import MetricLog
from hvdtrain.core.run.progress import Progress
from hvdtrain.core.run.results import TrainingResult
from hvdtrain.core.run.start import common_weights
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.precision import LossScale
from hvdtrain.core.update.schedules import schedule_factor


class BaseTrainer(Adapter):
    """Trains and evaluates one job on this rank; every rank runs it in step with the others."""

    def __init__(
        self,
        spec: JobSpec,
        plan: Plan,
        world: World,
        dataset: Dataset,
        family: Family,
        output_dir: Path,
        resume_from: Path | None = None,
    ) -> None:
        """Build the model and give every rank rank 0's initial weights, or what a checkpoint holds.

        Args:
            spec: the job.
            plan: made from the spec for this world.
            world: this rank's place.
            dataset: the prepared data.
            family: the model's weights and configuration.
            output_dir: where rank 0 writes; created when missing.
            resume_from: a `checkpoint-N` directory that rank 0 can read.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit the spec.
        """
        self.spec, self.plan, self.world, self.dataset = spec, plan, world, dataset
        self.output_dir = output_dir
        self._family = family
        self.step = 0
        # Updates that this rank's optimizer has applied; steps are counted also where a rank skips its own.
        self.applied = 0
        self.windows = 0
        self.skipped_updates = self.empty_updates = 0
        self.samples_consumed = 0
        self.weights: tuple[Weight, ...] = family.weights(spec.model)
        self.loss_scale = LossScale.of_spec(spec)
        self._build()
        if resume_from is None:
            self.load_weights(common_weights(self, self.weights))
        else:
            resume(self, resume_from)

    def train(self) -> TrainingResult:
        """Run every update of the plan, evaluating, logging and saving on the way.

        Returns:
            What was produced; the final model is in `output_dir/model`.

        Raises:
            TrainingError: when too many updates in a row are not finite, or one at the least loss scale.
        """
        started = time.perf_counter()
        loss, eval_loss = math.nan, None
        with ExitStack() as stack:
            log, progress = self._open_log(stack)
            windows = stack.enter_context(Prefetcher(self._windows(), depth=self.spec.data.prefetch))
            for line in self._updates(windows):
                if "loss" not in line:
                    # Of an update that was not applied, however seldom lines are asked for.
                    if log:
                        log.write(line)
                    continue
                loss = loss if line["loss"] is None else line["loss"]
                if log and self.step % self.spec.logging.logging_steps == 0:
                    log.write(line)
                if progress:
                    progress.update(self.step, line)
                if self._due(self.spec.evaluation.eval_steps):
                    eval_loss = self._evaluate_into(log)
                if self._due(self.spec.checkpointing.save_steps):
                    self.save(self.output_dir / f"checkpoint-{self.step}", gather_state(self))
            if not self._due(self.spec.evaluation.eval_steps):
                eval_loss = self._evaluate_into(log)
            self.save(self.output_dir / "model")
        seconds = time.perf_counter() - started
        skips = self.skipped_updates, self.empty_updates
        return TrainingResult(self.step, loss, eval_loss, self.output_dir / "model", seconds, *skips)

    def evaluate(self) -> dict[str, float | None]:
        """Evaluate the validation split, each sample exactly once over all ranks.

        Returns:
            `eval_loss` (the sum over all ranks divided by the sum of weights), `eval_perplexity` (its
            exponential) and `eval_samples`; None for the first two where the sum of weights is 0, since then
            there is nothing to predict. Empty when there is no validation split.
        """
        if not self.plan.validation_samples:
            return {}
        sums = np.zeros(3)
        for batch in self._eval_batches():
            sums += (self.loss_sum(batch), batch.weight, batch.counts["samples"])
        loss, weight, samples = self.sum_over_ranks(sums).tolist()
        mean = loss / weight if weight else None
        return {"eval_loss": mean, "eval_perplexity": _perplexity(mean), "eval_samples": int(samples)}

    def save(self, directory: Path, state: TrainingState | None = None) -> None:
        """Write the model in Hugging Face layout, atomically; rank 0 alone writes.

        Args:
            directory: replaced when it exists.
            state: what `--resume` needs beside it.
        """
        if self.world.is_chief:
            model = self.spec.model
            untrained = self._family.untrained(model)
            save_model(
                directory,
                self.read_weights(),
                {**self._family.hf_config(model), **self.dataset.config},
                self.dataset.files,
                also=(lambda into: save_state(into, state)) if state else lambda into: None,
                untrained=initial_weights(untrained, self.spec.seed, model.dtype),
            )

    def learning_rate(self) -> float:
        """That of the next update."""
        plan = self.plan
        return plan.learning_rate * schedule_factor(
            self.spec.schedule.type, self.step, plan.warmup_steps, plan.max_steps
        )

    def weights_are_due(self) -> bool:
        """Whether weights are evaluated or saved after this update."""
        every = self.spec.evaluation.eval_steps, self.spec.checkpointing.save_steps
        return self.step == self.plan.max_steps or any(map(self._due, every))

    def _updates(self, windows: Iterator[Window]) -> Iterator[Line]:
        window = yield from joint_updates(self, windows)
        if self.step < self.plan.max_steps:
            yield from local_updates(self, window, windows)

    def _windows(self) -> Iterator[Window]:
        return train_windows(
            self.dataset.train,
            seed=self.spec.seed,
            accumulation=self.plan.accumulation,
            rank=self.world.rank,
            start_samples=self.samples_consumed,
            start_update=self.windows + 1,
        )

    def _eval_batches(self) -> Iterator[Batch]:
        return eval_batches(
            self.dataset.validation,
            per_device=self.plan.per_device_eval_batch_size,
            rank=self.world.rank,
            size=self.world.size,
        )

    def _evaluate_into(self, log: MetricLog | None) -> float | None:
        found = self.evaluate() | self._counters()
        if log and found:
            log.write({"step": self.step, **found})
        return found.get("eval_loss")

    def _counters(self) -> dict[str, float]:
        policies = [self.spec.rules.policy(bucket) for bucket in self.plan.buckets]
        names = sorted({name for policy in policies for name in policy.counters})
        if not names:
            return {}
        states = self.read_compression()
        own = np.array([sum(float(state.get(name, 0)) for state in states) for name in names])
        return {f"wire_{n}": c for n, c in zip(names, self.sum_over_ranks(own).tolist(), strict=True)}

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _open_log(self, stack: ExitStack) -> tuple[MetricLog | None, Progress | None]:
        if not self.world.is_chief:
            return None, None
        self.output_dir.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context(MetricLog(self.output_dir, self.spec.logging.tensorboard, self.step))
        if not self.spec.logging.progress_bar:
            return log, None
        return log, stack.enter_context(Progress(self.plan.max_steps, self.step))


def _perplexity(loss: float | None) -> float | None:
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return math.inf
