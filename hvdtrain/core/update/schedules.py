"""Learning-rate schedules as pure functions of the update's number."""

from __future__ import annotations

import math

from hvdtrain.core.errors import SpecError


def schedule_factor(kind: str, update: int, warmup_steps: int, total_updates: int) -> float:
    """The share of the peak learning rate that update number `update` uses.

    Warm-up rises linearly and reaches the peak at its last update: (update + 1) / warmup_steps, so that
    the first update already learns. After it, `linear` falls as (T - u) / (T - w), `cosine` as half a
    cosine (Loshchilov & Hutter 2017, without restarts), both reaching 0 just after the last update.

    Args:
        kind: `linear`, `cosine` or `constant`.
        update: updates applied before this one, counted from 0.
        warmup_steps: updates of warm-up, w.
        total_updates: updates of the whole run, T.

    Returns:
        A factor in [0, 1].

    Raises:
        SpecError: for a kind that is not known.
    """
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    done = min(1.0, (update - warmup_steps) / max(1, total_updates - warmup_steps))
    if kind == "linear":
        return 1.0 - done
    if kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    raise SpecError(f"schedule.type: expected linear, cosine or constant, found {kind!r}")
