"""What each rank takes of what ranks have saved, also where their number has changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvdtrain.core.checkpoints.state import Rows, StateRecord
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rules import Rules


def share_of(policy: Policy, name: str, whole: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """A rank's share of a residual that another number of ranks has saved: their sum must not change.

    Args:
        policy: the bucket's.
        name: of the residual.
        whole: its sum over the ranks that saved it.
        rank: whose share it is.
        ranks: how many there are now.

    Returns:
        The same for every rank; of a count, all for rank 0.
    """
    if name in policy.counters:
        return whole if rank == 0 else np.zeros_like(whole)
    return np.asarray(whole / ranks)


def share_moments(record: StateRecord, rules: Rules, ranks: int) -> list[tuple[Sequence[int], int]]:
    """The ranks over whose moments each rank takes the mean, and the updates that its optimizer counts.

    After local updates each rank gets its own again. Where the number of ranks has changed, or ranks update
    together from here on and so need the same, every rank gets the mean over those that saved.

    Args:
        record: of the run that has saved.
        rules: by which the run goes on.
        ranks: how many there are now.

    Returns:
        One pair a rank, or a single one for all; with no ranks where moments were alike on all ranks.
    """
    applied, step = record.applied, record.run.step
    if not applied:
        return [((), step)]
    # A policy goes by the number of a rank's own updates: it must be local for the rank with the fewest, too.
    local = rules.at(min(applied) + 1).local
    if local and len(applied) == ranks:
        return [((rank,), applied[rank]) for rank in range(ranks)]
    return [(range(len(applied)), sum(applied) // len(applied) if local else step)]


def total(rows: Rows) -> np.ndarray:
    """The sum of all ranks' arrays, of which one is there at a time; of their dtype."""
    first, *others = rows
    found = np.array(first())
    for read in others:
        found += read()
    return found
