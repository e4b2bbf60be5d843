"""Updates that each rank takes alone, and the exchanges of weights between them.

One local update: a rank divides the summed gradients of its own share of the global batch by its own weight,
clips by its own norm, and applies its own optimizer, whose moments stay on the rank for good. Nothing is
sent. A rank whose share has weight 0, or whose gradients are not finite, does not move; the update counts
all the same: ranks must agree about which update is followed by an exchange, and about the learning rate.
One in which the shares of all ranks have weight 0 is counted as empty, as one that ranks would take together.
The loss scale is a rank's own between exchanges, and the least of all ranks' after one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.data import Window
from hvdtrain.core.run.joint_updates import Line
from hvdtrain.core.run.skips import Streak, check_scale

if TYPE_CHECKING:
    from hvdtrain.core.run.training import BaseTrainer


def local_updates(trainer: BaseTrainer, window: Window, windows: Iterator[Window]) -> Iterator[Line]:
    """Run all remaining updates, with an exchange after every one that the period divides and the last.

    Args:
        trainer: on this rank; its weights are those of all ranks, and are so again at every line, or with a
            policy's `background` at every line where they are due.
        window: of the first update.
        windows: those after it.

    Yields:
        One metric line for each period: means of the loss (over all that counts) and of the norms and times
        (over updates), sums of all that is counted.
    """
    (policy,), last = trainer.spec.rules.policies, trainer.plan.max_steps
    assert isinstance(policy, Periodic)
    trainer.exchange(policy.opening())
    streak, wired, under_way = Streak(), trainer.wire_bytes, False
    while trainer.step < last:
        started, waited = time.perf_counter(), 0.0
        first, end = trainer.step, min(trainer.step // policy.period * policy.period + policy.period, last)
        sums, samples, weights = np.zeros(len(_SUMS)), 0, np.zeros(end - first)
        for number in range(first, end):
            learning_rate = trainer.learning_rate()
            found = _update(trainer, window, learning_rate)
            trainer.applied += int(found[_APPLIED])
            sums += found
            weights[number - first] = window.weight
            samples += window.samples_global
            trainer.samples_consumed, epoch = window.samples_consumed, window.epoch
            trainer.windows, trainer.step = trainer.windows + 1, trainer.step + 1
            before = time.perf_counter()
            window = next(windows)
            waited += time.perf_counter() - before
        if under_way:
            trainer.finish_exchange()
        background = None if trainer.weights_are_due() else policy.background
        trainer.exchange(background[0] if background else policy)
        shared, weights = _share(trainer, sums, weights)
        totals, empty = dict(zip(_SUMS, shared.tolist(), strict=True)), int((weights == 0.0).sum())
        trainer.empty_updates += empty
        trainer.skipped_updates += int(totals["skipped"]) + empty
        _follow(streak, bool(totals["applied"]), end - first, empty)
        streak.check(trainer, math.nan)
        line: Line = {
            "step": end,
            "epoch": epoch,
            "loss": _mean(totals["loss"], totals["weight"]),
            "learning_rate": learning_rate,
            "grad_norm": _mean(totals["grad_norm"], totals["applied"]),
            "tokens": int(totals["tokens"]),
            "samples": samples,
            "samples_consumed": trainer.samples_consumed,
            "step_time_s": (time.perf_counter() - started) / (end - first),
            "data_wait_s": waited / (end - first),
            "wire_bytes": trainer.wire_bytes - wired,
            "loss_scale": trainer.loss_scale.value,
            "skipped_updates": trainer.skipped_updates,
            "empty_updates": trainer.empty_updates,
        }
        wired = trainer.wire_bytes
        # Last: what ranks ask each other from here on would wait for it.
        if under_way := background is not None:
            trainer.start_exchange(background[1])
        yield line


_SUMS = ("loss", "weight", "grad_norm", "tokens", "applied", "skipped")
_APPLIED = _SUMS.index("applied")


def _update(trainer: BaseTrainer, window: Window, learning_rate: float) -> np.ndarray:
    """One local update, and what it adds to each of _SUMS; a skipped one's loss may not be a number."""
    if not window.weight:
        return np.array([0.0, 0.0, 0.0, window.tokens, 0.0, 0.0])
    scale = trainer.loss_scale
    found = trainer.local_update(window, window.weight, learning_rate, trainer.applied + 1, scale.value)
    if not found.applied:
        check_scale(trainer, window, window.weight, together=False)
    trainer.loss_scale = scale.after(found.applied)
    if not found.applied:
        return np.array([0.0, 0.0, 0.0, found.tokens, 0.0, 1.0])
    return np.array([found.loss_sum, window.weight, found.grad_norm, found.tokens, 1.0, 0.0])


def _follow(streak: Streak, applied: bool, updates: int, empty: int) -> None:
    if applied:
        streak.end()
    else:
        streak.add(updates - empty, empty)


def _share(trainer: BaseTrainer, *sums: np.ndarray) -> list[np.ndarray]:
    """Sums over all ranks, and in the same collective what loss scale each rank has come to."""
    rank, size = trainer.world.rank, trainer.world.size
    scales = np.zeros((2, size))
    scales[:, rank] = trainer.loss_scale.value, trainer.loss_scale.good_updates
    totals = trainer.sum_over_ranks(np.concatenate([*sums, scales.ravel()]))
    *found, scales = np.split(totals, np.cumsum([len(each) for each in sums]))
    trainer.loss_scale = trainer.loss_scale.agreed(*scales.reshape(2, size))
    return found


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
