"""What ranks ask of each other at an update boundary; it travels with sums that they share anyway."""

from __future__ import annotations

import time
from typing import NamedTuple, NoReturn

import numpy as np

from hvdtrain.core.process.outputs import say
from hvdtrain.core.process.preemption import Preempted, ignore_requests
from hvdtrain.core.run.ranks import Ranks


class Requests(NamedTuple):
    """This rank's requests, 0 or 1 each; summed over ranks, how many have each.

    Attributes:
        stop: to save and to stop, since the rank was told to.
        save: to save, since it is time to.
    """

    stop: float = 0.0
    save: float = 0.0


NO_REQUESTS = Requests()


class SaveClock:
    """When a checkpoint is due by time; rank 0's clock decides for all ranks."""

    def __init__(self, minutes: float | None) -> None:
        """Start now.

        Args:
            minutes: from one checkpoint to the next; None: none is due, as on all ranks but the first.
        """
        self._seconds = None if minutes is None else 60.0 * minutes
        self.restart()

    def restart(self) -> None:
        """A checkpoint has been saved."""
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """Whether the time has come."""
        return self._seconds is not None and time.monotonic() - self._since >= self._seconds


def leave(ranks: Ranks, step: int, what_next: str) -> NoReturn:
    """End ranks that were told to stop, agree on it, and have saved; every rank calls it.

    Args:
        ranks: all of the job.
        step: updates that were taken.
        what_next: how to go on.

    Raises:
        Preempted: always.
    """
    # A launcher ends those that are slower to leave, and by SIGTERM: it is no scheduler's.
    ignore_requests()
    if ranks.is_chief:
        say(f"preempted at update {step}: {what_next}")
    # A launcher ends the others when one leaves: none does before all is saved and said.
    ranks.sum(np.zeros(1))
    raise Preempted
