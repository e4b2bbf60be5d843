"""The training loop, once for both frameworks: functions over a `Run`, which stays, and a `RunState`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import numpy as np

from hvdtrain.core.data import Prefetcher, Window, train_windows
from hvdtrain.core.process.heartbeat import report_step
from hvdtrain.core.process.preemption import Preempted
from hvdtrain.core.run.buffers import average_buffers
from hvdtrain.core.run.evaluation import compression_counters, evaluate
from hvdtrain.core.run.joint_updates import joint_updates
from hvdtrain.core.run.local_updates import local_updates
from hvdtrain.core.run.metrics import Line, MetricLog
from hvdtrain.core.run.output_dir import MODEL_DIR
from hvdtrain.core.run.progress import Progress
from hvdtrain.core.run.results import TrainingResult
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.saving import save
from hvdtrain.core.run.state import RunState


def train(run: Run, start: RunState) -> TrainingResult:
    """Take every remaining update of the plan, evaluating, logging and saving on the way.

    Every rank calls it, in step with the others.

    Args:
        run: on this rank.
        start: where it starts.

    Returns:
        What was produced; the final model is in `output_dir/model`.

    Raises:
        TrainingError: when too many updates in a row are not finite, or one at the least loss scale.
        Preempted: ranks were told to stop before the last update; the checkpoint is there.
    """
    started = time.perf_counter()
    state, loss, eval_loss, model_dir = start, math.nan, None, run.output_dir / MODEL_DIR
    averaged, saved = state.own_samples, None
    with ExitStack() as stack:
        log, progress = _open_log(run, start, stack)
        windows = stack.enter_context(Prefetcher(_windows(run, start), depth=run.spec.data.prefetch))
        report_step(start.step)
        for line, state in _updates(run, start, windows):
            report_step(state.step)
            applied = "loss" in line
            # An update that was not applied is logged however seldom lines are asked for.
            if log and not (applied and state.step % run.spec.logging.logging_steps):
                log.write(line)
            if not applied:
                continue
            loss = loss if line["loss"] is None else line["loss"]
            if progress:
                progress.update(state.step, line)
            if run.weights_are_due(state.step):
                average_buffers(run, state.own_samples - averaged)
                averaged = state.own_samples
            if run.evaluation_is_due(state.step):
                eval_loss = _evaluate_into(log, run, state)
            if run.checkpoint_is_due(state.step) and state.step < run.plan.max_steps:
                _save_checkpoint(run, state, loss, eval_loss)
                saved = state
        if state.step >= run.plan.max_steps:
            if not run.evaluation_is_due(state.step):
                eval_loss = _evaluate_into(log, run, state)
            save(run, model_dir)
            if run.checkpoint_is_due(state.step):
                # Behind the model: who goes on from here has nothing to do, and so makes none.
                _save_checkpoint(run, state, loss, eval_loss)
        elif saved is not state:
            average_buffers(run, state.own_samples - averaged)
            _save_checkpoint(run, state, loss, eval_loss)
    if state.step < run.plan.max_steps:
        _leave(run, state)
    return TrainingResult(state, loss, eval_loss, model_dir, time.perf_counter() - started)


def _checkpoint(run: Run, state: RunState) -> Path:
    return run.output_dir / f"checkpoint-{state.step}"


def _save_checkpoint(run: Run, state: RunState, loss: float, eval_loss: float | None) -> None:
    found = {"loss": loss} | ({"eval_loss": eval_loss} if eval_loss is not None else {})
    save(run, _checkpoint(run, state), state, found)


def _leave(run: Run, state: RunState) -> NoReturn:
    """End a run that was told to stop and has been saved; every rank calls it."""
    if run.ranks.is_chief:
        where = _checkpoint(run, state)
        print(f"preempted at update {state.step}: go on with --resume {where}", flush=True)
    # A launcher ends the others when one leaves: none does before all is saved and said.
    run.ranks.sum(np.zeros(1))
    raise Preempted


def _updates(run: Run, state: RunState, windows: Iterator[Window]) -> Iterator[tuple[Line, RunState]]:
    state, window = yield from joint_updates(run, state, windows)
    if state.step < run.plan.max_steps and not state.stopping:
        yield from local_updates(run, state, window, windows)


def _windows(run: Run, state: RunState) -> Iterator[Window]:
    return train_windows(
        run.dataset.train,
        seed=run.spec.seed,
        accumulation=run.plan.accumulation,
        rank=run.ranks.rank,
        start_samples=state.samples_consumed,
        start_update=state.windows + 1,
    )


def _evaluate_into(log: MetricLog | None, run: Run, state: RunState) -> float | None:
    found = evaluate(run) | compression_counters(run)
    if log and found:
        log.write({"step": state.step, **found})
    return found.get("eval_loss")


def _open_log(run: Run, state: RunState, stack: ExitStack) -> tuple[MetricLog | None, Progress | None]:
    if not run.ranks.is_chief:
        return None, None
    run.output_dir.mkdir(parents=True, exist_ok=True)
    log = stack.enter_context(MetricLog(run.output_dir, run.spec.logging.tensorboard, state.step))
    if not run.spec.logging.progress_bar:
        return log, None
    return log, stack.enter_context(Progress(run.plan.max_steps, state.step))
