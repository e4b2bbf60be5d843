"""How a job ended, as its last line says it and as its exit status tells."""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass

from hvdtrain.core.process.preemption import BEFORE_FIRST_UPDATE, PREEMPTION_SIGNALS, RESUMABLE_STATUS
from hvdtrain.launch.output import FailureWatch, describe_status

_BY_SIGNAL = tuple(128 + number for number in (signal.SIGINT, signal.SIGHUP, *PREEMPTION_SIGNALS))


@dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
        status: 0; 85 where ranks were told to stop and can go on; the exit status of the rank that failed
            first (128 + signal for a killed one) where it can be told, else the launcher's.
        told: the last line, in which `hvdtrain run` says so; None where there is nothing to say.
        cause: what has failed, without the rank.
        ranks: that have failed, as far as that can be told.
        asked: whether a signal to `hvdtrain run` has asked for it.
    """

    status: int
    told: str | None = None
    cause: str | None = None
    ranks: tuple[int, ...] = ()
    asked: bool = False

    @property
    def crashed(self) -> bool:
        """Whether the job failed by itself: nobody told it to end."""
        return self.status not in (0, RESUMABLE_STATUS, *_BY_SIGNAL)

    @property
    def reason(self) -> str:
        """The last line, with what has failed where that stands further above."""
        parts = [self.told or "", *([self.cause] if self.cause and self.cause not in str(self.told) else [])]
        return ": ".join(parts)

    def tell(self) -> None:
        """Print the last line on standard error."""
        if self.told is not None:
            print(f"hvdtrain: {self.told}", file=sys.stderr)


def ending_of(status: int, watch: FailureWatch, asked: bool) -> Ending:
    """How a job ended whose launcher has ended.

    Args:
        status: the launcher's.
        watch: which has seen all that was printed.
        asked: whether ranks were told to stop.
    """
    if watch.preempted is not None:
        return Ending(RESUMABLE_STATUS, watch.preempted)
    failure = watch.first_failure()
    found = (failure and failure.status) or status
    # Before it heeds a signal, a rank is ended by it.
    if found == RESUMABLE_STATUS or (asked and found - 128 in PREEMPTION_SIGNALS):
        return Ending(RESUMABLE_STATUS, BEFORE_FIRST_UPDATE)
    if status == 0:
        return Ending(0)
    if failure is None:
        how = describe_status(status)
        return Ending(status, f"the launcher failed ({how}); see above", how)
    return Ending(found, str(failure), failure.error or describe_status(found), (failure.rank,))
