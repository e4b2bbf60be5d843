"""Updates that all ranks take together: each is applied by all of them, or by none.

An update that is not applied, because it is not finite or because no rank has anything to predict, uses its
samples up and does not count: the next one has its number, and its learning rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator

import numpy as np

from hvdtrain.core.data import Window
from hvdtrain.core.process.preemption import told_to_stop
from hvdtrain.core.run.metrics import Line
from hvdtrain.core.run.requests import Requests, SaveClock
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.skips import Streak, check_scale
from hvdtrain.core.run.state import RunState


def joint_updates(
    run: Run, state: RunState, windows: Iterator[Window], clock: SaveClock
) -> Generator[tuple[Line, RunState], None, tuple[RunState, Window]]:
    """Take updates until the run ends, local updates begin, or ranks get a signal to stop.

    Args:
        run: on this rank.
        state: where it stands.
        windows: this rank's micro-batches of each update, without end.
        clock: this rank's, by which checkpoints may be due.

    Yields:
        A metric line for each update that was tried, and the state after it. The line of an update which was
        not applied has no loss.

    Returns:
        The state after the last of these updates, and the first window that was not used.
    """
    window, streak = next(windows), Streak()
    divisor = float(run.ranks.sum(np.array([window.weight]))[0])
    while state.step < run.plan.max_steps and not state.stopping:
        rules = run.spec.rules.at(state.step + 1)
        if rules.local:
            break
        started, wired = time.perf_counter(), run.wire_bytes
        upcoming = next(windows)
        waited = time.perf_counter() - started
        number, rate, scale = state.step + 1, run.learning_rate(state.step), state.loss_scale.value
        own, requests = rules.divisor(window.weight, divisor), Requests(told_to_stop(), clock.is_due())
        if divisor:
            result = run.adapter.update(window, own, upcoming.weight, rate, number, scale, requests)
            if result.weight and not result.applied:
                check_scale(run, state, window, own, together=True)
        else:
            result = _pass_over(run, window, upcoming, requests)
        # A loss of the user's may find that nothing counts.
        empty = not result.weight
        stop, save = (asked > 0 for asked in result.requests)
        save = save or run.epoch_ends(state.samples_consumed, window.samples_consumed)
        state = state.after_joint(window, result.applied, empty, stop, save)
        streak = streak.after(result.applied, not_finite=not empty, empty=empty)
        line: Line = {"step": number, "epoch": window.epoch}
        if result.applied:
            line["loss"] = result.loss_sum / result.weight
        line |= {
            "learning_rate": rate,
            "grad_norm": result.grad_norm,
            "tokens": result.tokens,
            "samples": window.samples_global,
            "samples_consumed": state.samples_consumed,
            "step_time_s": time.perf_counter() - started,
            "data_wait_s": waited,
            "wire_bytes": run.wire_bytes - wired,
            "loss_scale": scale,
            "skipped_updates": state.skipped_updates,
            "empty_updates": state.empty_updates,
        }
        yield line, state
        streak.check(run.spec, state.step, result.grad_norm)
        window, divisor = upcoming, result.next_divisor
    return state, window


def _pass_over(run: Run, window: Window, upcoming: Window, requests: Requests) -> UpdateResult:
    """An update in which no rank has anything to predict: all that is sent is what the next one needs."""
    sums = run.ranks.sum(np.array([upcoming.weight, window.tokens, *requests], np.float64))
    divisor, tokens, *asked = sums.tolist()
    return UpdateResult(0.0, math.nan, False, divisor, int(tokens), 0.0, Requests(*asked))
