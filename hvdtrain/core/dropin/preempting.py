"""Preemption of a loop of the user's own: all ranks save after the same update, and end with one status."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from hvdtrain.core.checkpoints.finding import checkpoint_dir
from hvdtrain.core.dropin.saving import LoopWriter
from hvdtrain.core.process.preemption import (
    heed_preemption_for_good,
    note_requests,
    told_to_stop,
)
from hvdtrain.core.run.requests import leave


class Preemption:
    """What SIGTERM and SIGUSR1 do to a loop; until ranks `agree` for the first time, they end it at once.

    Attributes:
        writer: of the loop's checkpoints.
        reached: whether ranks have agreed to stop.
    """

    def __init__(self, writer: LoopWriter) -> None:
        """Heed the signals.

        Args:
            writer: of the loop's checkpoints.
        """
        self.writer, self.reached = writer, False
        heed_preemption_for_good()

    def agree(self, told: float | None) -> bool:
        """Whether ranks stop; every rank calls it after the same update. From now on a signal is only noted.

        Args:
            told: how many ranks were told to stop, as the update has summed it; None: it has not.
        """
        note_requests(True)
        if told is None:
            told = self.writer.ranks.sum(np.array([float(told_to_stop())]))[0]
        self.reached = bool(told)
        return self.reached

    def pause(self) -> None:
        """Until ranks agree again, a signal ends the process at once: what there was to save is saved."""
        note_requests(False)

    def leave(self, step: int) -> NoReturn:
        """End the program once the checkpoint is on disk that has just been saved; every rank calls it.

        Args:
            step: updates that were taken.

        Raises:
            Preempted: always.
            CheckpointError: on every rank: the checkpoint could not be written.
        """
        self.writer.wait()
        leave(self.writer.ranks, step, f"go on from {checkpoint_dir(self.writer.directory, step)}")
