"""Updates that all ranks take together: each is applied by all of them, or by none.

An update that is not applied, because it is not finite or because no rank has anything to predict, uses its
samples up and does not count: the next one has its number, and its learning rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import numpy as np

from hvdtrain.core.data import Window
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.skips import Streak, check_scale

if TYPE_CHECKING:
    from hvdtrain.core.run.training import BaseTrainer

# What one line of the metric log holds, by name; None for what is not a number.
Line = dict[str, float | None]


def joint_updates(trainer: BaseTrainer, windows: Iterator[Window]) -> Generator[Line, None, Window]:
    """Run updates to the run's last, or to the first that ranks take alone.

    Args:
        trainer: of this rank.
        windows: its micro-batches of each update, without end.

    Yields:
        A metric line for each update that was tried; that of one which was not applied has no loss.

    Returns:
        The first window that was not used.
    """
    window, streak = next(windows), Streak()
    divisor = float(trainer.sum_over_ranks(np.array([window.weight]))[0])
    while trainer.step < trainer.plan.max_steps:
        rules = trainer.spec.rules.at(trainer.step + 1)
        if rules.local:
            break
        started, wired = time.perf_counter(), trainer.wire_bytes
        upcoming = next(windows)
        waited = time.perf_counter() - started
        number, rate, scale = trainer.step + 1, trainer.learning_rate(), trainer.loss_scale.value
        own = rules.divisor(window.weight, divisor)
        if divisor:
            result = trainer.update(window, own, upcoming.weight, rate, number, scale)
        else:
            result = _pass_over(trainer, window, upcoming)
        trainer.windows, trainer.samples_consumed = trainer.windows + 1, window.samples_consumed
        _settle(trainer, window, own, result, streak, empty=not divisor)
        line: Line = {"step": number, "epoch": window.epoch}
        if result.applied:
            line["loss"] = result.loss_sum / divisor
        yield line | {
            "learning_rate": rate,
            "grad_norm": result.grad_norm,
            "tokens": result.tokens,
            "samples": window.samples_global,
            "samples_consumed": trainer.samples_consumed,
            "step_time_s": time.perf_counter() - started,
            "data_wait_s": waited,
            "wire_bytes": trainer.wire_bytes - wired,
            "loss_scale": scale,
            "skipped_updates": trainer.skipped_updates,
            "empty_updates": trainer.empty_updates,
        }
        streak.check(trainer, result.grad_norm)
        window, divisor = upcoming, result.next_divisor
    return window


def _pass_over(trainer: BaseTrainer, window: Window, upcoming: Window) -> UpdateResult:
    """An update in which no rank has anything to predict: all that is sent is what the next one needs."""
    sums = trainer.sum_over_ranks(np.array([upcoming.weight, window.tokens], np.float64))
    return UpdateResult(0.0, math.nan, False, float(sums[0]), int(sums[1]))


def _settle(
    trainer: BaseTrainer, window: Window, divisor: float, result: UpdateResult, streak: Streak, empty: bool
) -> None:
    """Count an update by what became of it, and have the loss scale follow."""
    if result.applied:
        trainer.step, trainer.applied = trainer.step + 1, trainer.step + 1
        trainer.loss_scale = trainer.loss_scale.after(True)
        streak.end()
        return
    trainer.skipped_updates += 1
    trainer.empty_updates += empty
    streak.add(not empty, empty)
    if not empty:
        check_scale(trainer, window, divisor, together=True)
        trainer.loss_scale = trainer.loss_scale.after(False)
