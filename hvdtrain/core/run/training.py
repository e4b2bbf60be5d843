"""The training loop, once for both frameworks: functions over a `Run`, which stays, and a `RunState`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NoReturn

from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.checkpoints.finding import checkpoint_dir
from hvdtrain.core.checkpoints.model_folder import MODEL_DIR
from hvdtrain.core.data import Prefetcher, Window, train_windows
from hvdtrain.core.process.heartbeat import report_step
from hvdtrain.core.run.buffers import average_buffers
from hvdtrain.core.run.evaluation import compression_counters, evaluate
from hvdtrain.core.run.joint_updates import joint_updates
from hvdtrain.core.run.local_updates import local_updates
from hvdtrain.core.run.metrics import Line, MetricLog
from hvdtrain.core.run.progress import Progress
from hvdtrain.core.run.requests import SaveClock, leave
from hvdtrain.core.run.results import TrainingResult
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.saving import save, save_final_model
from hvdtrain.core.run.snapshots import Snapshots
from hvdtrain.core.run.state import RunState


def train(run: Run, start: RunState, snapshots: Snapshots | None = None) -> TrainingResult:
    """Take every remaining update of the plan, evaluating, logging and saving on the way.

    Every rank calls it, in step with the others.

    Args:
        run: on this rank.
        start: where it starts.
        snapshots: of an elastic job.

    Returns:
        What was produced; the final model is in `output_dir/model`.

    Raises:
        TrainingError: when too many updates in a row are not finite, or one at the least loss scale.
        Preempted: ranks were told to stop before the last update; the checkpoint is there.
    """
    started = time.perf_counter()
    state, loss, eval_loss = start, math.nan, None
    averaged, saved, owed = state.own_samples, None, False
    saving = run.spec.checkpointing
    clock = SaveClock(saving.save_minutes if run.ranks.is_chief else None)
    with ExitStack() as stack:
        log, progress = _open_log(run, start, stack)
        # One for both: there is at most one copy of the state in memory.
        writer = snapshots.writer if snapshots else stack.enter_context(BackgroundWriter())
        windows = stack.enter_context(Prefetcher(_windows(run, start), depth=run.spec.data.prefetch))
        for line, state in _followed(run, start, _updates(run, start, windows, clock), snapshots):
            writer.check()
            applied, owed = "loss" in line, owed or state.saving
            # An update that was not applied is logged however seldom lines are asked for.
            if log and not (applied and state.step % run.spec.logging.logging_steps):
                log.write(line)
            if not applied:
                continue
            loss = loss if line["loss"] is None else line["loss"]
            if progress:
                progress.update(state.step, line)
            due = (owed or run.checkpoint_is_due(state.step)) and state.step < run.plan.max_steps
            if due or run.weights_are_due(state.step):
                average_buffers(run, state.own_samples - averaged)
                averaged = state.own_samples
            measured: Line = {}
            if run.evaluation_is_due(state.step) or (due and saving.best_metric):
                measured = _evaluate_into(log, run, state)
                eval_loss = measured.get("eval_loss")
            if snapshots:
                # First, since it is written to memory: whatever is saved next waits for it.
                snapshots.follow(run, state)
            if due:
                # What is written in the background is a copy.
                _save_checkpoint(run, log, state, loss, measured, writer if saving.async_save else None)
                clock.restart()
                saved, owed = state, False
        writer.wait()
        if state.step >= run.plan.max_steps:
            eval_loss = _complete(run, log, state, loss, measured).get("eval_loss")
        elif saved is not state:
            average_buffers(run, state.own_samples - averaged)
            _save_checkpoint(run, log, state, loss, {})
    if state.step < run.plan.max_steps:
        _leave(run, state, snapshots)
    return TrainingResult(state, loss, eval_loss, run.output_dir / MODEL_DIR, time.perf_counter() - started)


def _complete(run: Run, log: MetricLog | None, state: RunState, loss: float, measured: Line) -> Line:
    """Evaluate a run at its end, unless that was done, and save what it leaves; returns what was measured."""
    if not run.evaluation_is_due(state.step):
        measured = _evaluate_into(log, run, state)
    save_final_model(run, state, measured)
    if run.checkpoint_is_due(state.step):
        # Behind the model: who goes on from here has nothing to do, and so makes none.
        _save_checkpoint(run, log, state, loss, measured)
    return measured


def _save_checkpoint(
    run: Run,
    log: MetricLog | None,
    state: RunState,
    loss: float,
    measured: Line,
    writer: BackgroundWriter | None = None,
) -> None:
    if log:
        log.sync()
    metrics = {name: value for name, value in measured.items() if name.startswith("eval_")}
    save(run, checkpoint_dir(run.output_dir, state.step), state, {"loss": loss, **metrics}, writer)


def _leave(run: Run, state: RunState, snapshots: Snapshots | None) -> NoReturn:
    """End a run that was told to stop and has been saved; every rank calls it."""
    if snapshots:
        # Rank 0 may be on another host when it goes on.
        snapshots.take(run, state, wait=True)
    leave(run.ranks, state.step, f"go on with --resume {checkpoint_dir(run.output_dir, state.step)}")


def _followed(
    run: Run, start: RunState, updates: Iterator[tuple[Line, RunState]], snapshots: Snapshots | None
) -> Iterator[tuple[Line, RunState]]:
    """The same updates, each reported to the launcher; before them a snapshot is taken."""
    if snapshots:
        # From here on the loss of any one host loses nothing, whoever held what the run goes on from.
        snapshots.take(run, start, wait=True)
    report_step(start.step)
    for line, state in updates:
        report_step(state.step)
        yield line, state


def _updates(
    run: Run, state: RunState, windows: Iterator[Window], clock: SaveClock
) -> Iterator[tuple[Line, RunState]]:
    state, window = yield from joint_updates(run, state, windows, clock)
    if state.step < run.plan.max_steps and not state.stopping:
        yield from local_updates(run, state, window, windows, clock)


def _windows(run: Run, state: RunState) -> Iterator[Window]:
    return train_windows(
        run.dataset.train,
        seed=run.spec.seed,
        accumulation=run.plan.accumulation,
        rank=run.ranks.rank,
        start_samples=state.samples_consumed,
        start_update=state.windows + 1,
    )


def _evaluate_into(log: MetricLog | None, run: Run, state: RunState) -> Line:
    found = evaluate(run) | compression_counters(run)
    if log and found:
        log.write({"step": state.step, **found})
    return found


def _open_log(run: Run, state: RunState, stack: ExitStack) -> tuple[MetricLog | None, Progress | None]:
    if not run.ranks.is_chief:
        return None, None
    run.output_dir.mkdir(parents=True, exist_ok=True)
    log = stack.enter_context(MetricLog(run.output_dir, run.spec.logging.tensorboard, state.step))
    if not run.spec.logging.progress_bar:
        return log, None
    return log, stack.enter_context(Progress(run.plan.max_steps, state.step))
