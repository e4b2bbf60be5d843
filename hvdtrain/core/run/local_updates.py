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
from dataclasses import dataclass

import numpy as np

from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.data import Window
from hvdtrain.core.process.preemption import told_to_stop
from hvdtrain.core.run.metrics import Line
from hvdtrain.core.run.requests import Requests, SaveClock
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.skips import Streak, check_scale
from hvdtrain.core.run.state import RunState


def local_updates(
    run: Run, state: RunState, window: Window, windows: Iterator[Window], clock: SaveClock
) -> Iterator[tuple[Line, RunState]]:
    """Take all remaining updates, with an exchange after every one that the period divides and the last.

    After a signal to stop there is one more exchange, and no further update.

    Args:
        run: on this rank; its weights are those of all ranks, and are so again at every line, or with a
            policy's `background` at every line where they are due.
        state: where it stands.
        window: of the first update.
        windows: those after it.
        clock: this rank's, by which checkpoints may be due.

    Yields:
        One metric line for each period, and the state after it. The line has means of the loss (over all
        that counts) and of the norms and times (over updates), and sums of all that is counted.
    """
    (policy,), adapter, last = run.spec.rules.policies, run.adapter, run.plan.max_steps
    assert isinstance(policy, Periodic)
    adapter.exchange(policy.opening())
    streak, wired, under_way = Streak(), adapter.reducer.wire_bytes, False
    while state.step < last and not state.stopping:
        started = time.perf_counter()
        end = min(state.step // policy.period * policy.period + policy.period, last)
        before = state.samples_consumed
        period = _take_period(run, state, window, windows, end)
        if under_way:
            adapter.finish_exchange()
        background = None if run.weights_are_due(end) else policy.background
        adapter.exchange(background[0] if background else policy)
        totals, state = _share(run, period, before, Requests(told_to_stop(), clock.is_due()))
        streak = streak.after(bool(totals.applied), totals.updates - totals.empty, totals.empty)
        streak.check(run.spec, end, math.nan)
        wired_before, wired = wired, adapter.reducer.wire_bytes
        line = _line(period, totals, state, time.perf_counter() - started, wired - wired_before)
        # Last: what ranks ask each other from here on would wait for it.
        if under_way := background is not None:
            adapter.start_exchange(background[1])
            if state.stopping or state.saving:
                adapter.finish_exchange()
                adapter.exchange(policy)
                under_way = False
        yield line, state
        window = period.upcoming


@dataclass(frozen=True)
class _Period:
    """What one rank did between two exchanges.

    Attributes:
        state: after its updates.
        upcoming: the first window that was not used.
        sums: what its updates add up to, by the names of `_SUMS`.
        weights: of each window, as its loss has counted.
        samples: of the global batches.
        epoch: of the last update.
        learning_rate: of the last update.
        waited: seconds in which the rank waited for data.
    """

    state: RunState
    upcoming: Window
    sums: np.ndarray
    weights: np.ndarray
    samples: int
    epoch: int
    learning_rate: float
    waited: float


@dataclass(frozen=True)
class _Totals:
    """What all ranks did between two exchanges: sums over ranks and updates, by the names of `_SUMS`.

    Attributes:
        updates: of the period, counted once for all ranks.
        empty: the part of them in which no rank had anything to predict.
    """

    updates: int
    empty: int
    loss: float
    weight: float
    grad_norm: float
    tokens: float
    applied: float
    skipped: float


_SUMS = ("loss", "weight", "grad_norm", "tokens", "applied", "skipped")


def _take_period(run: Run, state: RunState, window: Window, windows: Iterator[Window], end: int) -> _Period:
    sums, samples, waited = np.zeros(len(_SUMS)), 0, 0.0
    weights = np.zeros(end - state.step)
    for index in range(len(weights)):
        rate, epoch = run.learning_rate(state.step), window.epoch
        state, found, weights[index] = _update(run, state, window, rate)
        sums += found
        samples += window.samples_global
        before = time.perf_counter()
        window = next(windows)
        waited += time.perf_counter() - before
    return _Period(state, window, sums, weights, samples, epoch, rate, waited)


def _update(
    run: Run, state: RunState, window: Window, learning_rate: float
) -> tuple[RunState, np.ndarray, float]:
    """One local update, what it adds to each of _SUMS (a skipped loss may be no number), and its weight."""
    nothing, scale = np.array([0.0, 0.0, 0.0, window.tokens, 0.0, 0.0]), state.loss_scale.value
    if not window.weight:
        return state.after_local(window, False, empty=True), nothing, 0.0
    found = run.adapter.local_update(window, window.weight, learning_rate, state.applied + 1, scale)
    if not found.weight:
        # A loss of the user's has found that nothing counts.
        return state.after_local(window, False, empty=True), nothing, 0.0
    if not found.applied:
        check_scale(run, state, window, window.weight, together=False)
        skipped = np.array([0.0, 0.0, 0.0, found.tokens, 0.0, 1.0])
        return state.after_local(window, False, empty=False), skipped, found.weight
    sums = [found.loss_sum, found.weight, found.grad_norm, found.tokens, 1.0, 0.0]
    return state.after_local(window, True, empty=False), np.array(sums), found.weight


def _share(run: Run, period: _Period, before: int, requests: Requests) -> tuple[_Totals, RunState]:
    """Sums over all ranks, and in the same collective what loss scale each rank has come to.

    Args:
        run: on this rank.
        period: what it did.
        before: samples consumed at its start, over all ranks.
        requests: this rank's.
    """
    ranks, scale = run.ranks, period.state.loss_scale
    scales = np.zeros((2, ranks.size))
    scales[:, ranks.rank] = scale.value, scale.good_updates
    own = [period.sums, period.weights, scales.ravel(), np.array(requests, np.float64)]
    shared = ranks.sum(np.concatenate(own))
    updates = len(period.weights)
    ends = [len(_SUMS), len(_SUMS) + updates, -len(requests)]
    sums, weights, scales, asked = np.split(shared, ends)
    totals = _Totals(updates, int((weights == 0.0).sum()), *sums.tolist())
    agreed = scale.agreed(*scales.reshape(2, ranks.size))
    skipped = int(totals.skipped) + totals.empty
    stop, save = (count > 0 for count in asked.tolist())
    save = save or run.epoch_ends(before, period.state.samples_consumed)
    return totals, period.state.after_exchange(agreed, skipped, totals.empty, stop, save)


def _line(period: _Period, totals: _Totals, state: RunState, seconds: float, wire_bytes: int) -> Line:
    return {
        "step": state.step,
        "epoch": period.epoch,
        "loss": _mean(totals.loss, totals.weight),
        "learning_rate": period.learning_rate,
        "grad_norm": _mean(totals.grad_norm, totals.applied),
        "tokens": int(totals.tokens),
        "samples": period.samples,
        "samples_consumed": state.samples_consumed,
        "step_time_s": seconds / totals.updates,
        "data_wait_s": period.waited / totals.updates,
        "wire_bytes": wire_bytes,
        "loss_scale": state.loss_scale.value,
        "skipped_updates": state.skipped_updates,
        "empty_updates": state.empty_updates,
    }


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None
