"""Learning-rate schedules as pure functions of the update's number."""

from __future__ import annotations

import math

from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.optimizer_sections import ScheduleSpec

# Transformers' timescale of a run without warm-up.
_TIMESCALE = 10_000


def schedule_factor(
    schedule: ScheduleSpec, update: int, warmup_steps: int, total_updates: int, peak: float
) -> float:
    """The share of the peak learning rate that update number `update` uses.

    Warm-up rises linearly and reaches the peak at its last update: (update + 1) / warmup_steps, so that
    the first update already learns. After it come the formulas of `transformers.optimization`, of
    d = (u - w) / (T - w):

    - `linear`: 1 - d;
    - `cosine`: c = (1 + cos(π d)) / 2 (Loshchilov & Hutter 2017, without restarts);
    - `cosine_with_min_lr`: c (1 - r) + r, of r = `min_lr_rate`, or `min_lr` / peak;
    - `polynomial`: (1 - e) (1 - d)^`power` + e, of e = `lr_end` / peak;
    - `inverse_sqrt`: 1 / sqrt(1 + (u - w) / s), of s = `timescale`, or w, or 10,000 without warm-up;
    - `constant` and `constant_with_warmup`: 1.

    Args:
        schedule: its type and fields.
        update: updates applied before this one, u, counted from 0.
        warmup_steps: updates of warm-up, w.
        total_updates: updates of the whole run, T; d stays 1 after them.
        peak: the learning rate after warm-up.

    Returns:
        A factor in [0, 1].
    """
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    if schedule.type in ("constant", "constant_with_warmup"):
        return 1.0
    if schedule.type == "inverse_sqrt":
        timescale = schedule.timescale or warmup_steps or _TIMESCALE
        return 1.0 / math.sqrt(1.0 + (update - warmup_steps) / timescale)
    done = min(1.0, (update - warmup_steps) / max(1, total_updates - warmup_steps))
    cosine = schedule.type in ("cosine", "cosine_with_min_lr")
    left = 0.5 * (1.0 + math.cos(math.pi * done)) if cosine else 1.0 - done
    least = _least(schedule, peak)
    return (1.0 - least) * left**schedule.power + least


def check_peak(schedule: ScheduleSpec, peak: float) -> float:
    """Refuse a learning rate that would rise after warm-up.

    Args:
        schedule: its type and fields.
        peak: the learning rate after warm-up.

    Returns:
        `peak`.

    Raises:
        SpecError: the schedule ends at or above it.
    """
    ends = {"cosine_with_min_lr": ("min_lr", schedule.min_lr), "polynomial": ("lr_end", schedule.lr_end)}
    name, end = ends.get(schedule.type, ("", None))
    if end is not None and end >= peak:
        raise SpecError(f"schedule.{name}: {end:g} must be below the peak learning rate, {peak:g}")
    return peak


def _least(schedule: ScheduleSpec, peak: float) -> float:
    """The factor after the last update."""
    if schedule.type == "polynomial":
        return schedule.lr_end / peak
    return schedule.min_lr_rate or (schedule.min_lr or 0.0) / peak
