"""What the ranks of a job let its launcher hear of themselves, and which of them have fallen silent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hvdtrain.core.process.heartbeat import Beat

# Ranks are heard every second: one that was not for so many is what the others have failed for.
_SECONDS_OF_SUSPICION = 10.0


class Heartbeats:
    """The last heartbeat of every rank of a job.

    Silence is counted from when some rank was heard first, and before that for all of them together; only in
    the time for which the launcher itself was awake.

    Attributes:
        last: of each rank that was heard.
        step: updates that count; -1 before training.
        begun: updates that counted when training began; None before that.
        idle: seconds without progress on any rank.
        first_update_at: when the first update after that was heard of; None before that.
        last_update_at: when the last one was; before that, when the job was started.
    """

    def __init__(self, ranks: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        Args:
            ranks: how many there are; none of them was heard.
            clock: the time in seconds.
        """
        self._clock = clock
        self.last: dict[int, Beat] = {}
        self.step = -1
        self.idle = 0.0
        self.begun: int | None = None
        self.first_update_at: float | None = None
        self.last_update_at = clock()
        self._silence = dict.fromkeys(range(ranks), 0.0)
        self._before_any = 0.0
        self._suspects: Sequence[int] = ()

    def hear(self, rank: int, beat: Beat) -> None:
        """Take a heartbeat into account."""
        before, self.last[rank] = self.last.get(rank), beat
        self._silence[rank] = 0.0
        if before is None or before.work != beat.work:
            self.idle = 0.0
        if beat.step <= self.step:
            return
        self.step = beat.step
        if self.begun is None:
            self.begun = beat.step
        else:
            self.last_update_at = self._clock()
            self.first_update_at = self.first_update_at or self.last_update_at

    def let_pass(self, seconds: float, failed: bool) -> None:
        """Take into account that time has passed.

        Args:
            seconds: how much.
            failed: whether a rank has failed: then the others end, and fall silent for that reason.
        """
        if not self.last:
            self._before_any += seconds
            return
        self.idle += seconds
        self._silence = {rank: silence + seconds for rank, silence in self._silence.items()}
        if not failed:
            self._suspects = self.silent(_SECONDS_OF_SUSPICION)

    def silent(self, seconds: float) -> Sequence[int]:
        """The ranks that were not heard for so long."""
        if not self.last and self._before_any >= seconds:
            return [*self._silence]
        return [rank for rank, silence in self._silence.items() if silence >= seconds]

    @property
    def told(self) -> Sequence[int]:
        """The ranks that their hosts' schedulers have told to stop."""
        return [rank for rank, beat in self.last.items() if beat.told]

    @property
    def suspects(self) -> Sequence[int]:
        """The ranks that were silent before any has failed: it is them that the others have missed."""
        return self._suspects
