"""Who watches over a job that is started again when it ends: its heartbeats, and silent hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hvdtrain.core.run.agreement import name_ranks
from hvdtrain.launch.discovery import run_on
from hvdtrain.launch.endings import Ending
from hvdtrain.launch.heartbeats import Heartbeats
from hvdtrain.launch.hosts import Host, host_of, hosts_of

# What ssh exits with when it loses a host, too.
_LOST = 255
# No thread of Python runs while a framework's library is loaded, which takes long from a slow disk. And there
# may be data to prepare.
_AT_START = 4


class Attendant:
    """Listens to a job.

    Attributes:
        hosts: that it runs on.
        heartbeats: of its ranks.
    """

    def __init__(self, hosts: Sequence[Host], heard: Callable[[Heartbeats], object]) -> None:
        """Begin.

        Args:
            hosts: that the job runs on.
            heard: called twice a second with all that was heard.
        """
        self.hosts, self._heard = hosts, heard
        self.heartbeats = Heartbeats(sum(host.slots for host in hosts))

    def look(self, stop: Callable[[], object]) -> Ending | None:
        """Look after the job; called twice a second.

        Args:
            stop: has ranks save and stop after the update they are in.

        Returns:
            None; or how the job has ended: then it is ended at once.
        """
        del stop
        self._heard(self.heartbeats)
        return None

    def tell(self) -> bool:
        """Tell a rank on another host to stop, for none is on this one: by ssh, the first whose host answers.

        Returns:
            Whether one was told.
        """
        return any(
            run_on(host_of(self.hosts, rank), "kill", "-USR1", str(beat.pid))
            for rank, beat in sorted(self.heartbeats.last.items())
        )


class ElasticAttendant(Attendant):
    """Ends a job of which a host has fallen silent, and has it stop where it can go on on other hosts.

    Attributes:
        regrouping: why the job was told to stop; None: it was not.
        hung: whether it was ended because no rank had come further.
    """

    def __init__(
        self,
        hosts: Sequence[Host],
        heard: Callable[[Heartbeats], object],
        timeout: float,
        patience: float,
        better: Callable[[], str | None],
    ) -> None:
        """Begin.

        Args:
            hosts: that the job runs on.
            heard: called twice a second with all that was heard.
            timeout: seconds of silence that are too many; before the first update four times as many are.
            patience: seconds without progress on any rank that are too many; before the first update four
                times as many are.
            better: why the job is to go on on other hosts; None: it is not.
        """
        super().__init__(hosts, heard)
        self.regrouping: str | None = None
        self.hung = False
        self._timeout, self._patience, self._better = timeout, patience, better

    def look(self, stop: Callable[[], object]) -> Ending | None:
        """As `Attendant.look`."""
        super().look(stop)
        # At least one update comes of each start, however often hosts come and go.
        moved = self.heartbeats.first_update_at is not None
        factor = 1 if moved else _AT_START
        if silent := self.heartbeats.silent(factor * self._timeout):
            return self._lost(silent, factor * self._timeout)
        if self.heartbeats.idle >= factor * self._patience:
            self.hung = True
            told = f"no rank has made progress for {factor * self._patience:g} s (--stall-timeout)"
            return Ending(_LOST, told, "no rank has made progress")
        # Ranks leave already where one was told to: a signal more would end that one before it has saved.
        stays = self.regrouping is None and not self.heartbeats.told
        if moved and stays and (why := self._better()):
            self.regrouping = why
            stop()
        return None

    def _lost(self, silent: Sequence[int], timeout: float) -> Ending:
        where = name_hosts(self.hosts, silent)
        told = f"nothing was heard from {where} for {timeout:g} s: frozen, or cut off from this host"
        # Where no rank was heard yet, no host is to blame more than another.
        return Ending(_LOST, told, "nothing was heard", tuple(silent) if self.heartbeats.last else ())


def name_hosts(hosts: Sequence[Host], ranks: Sequence[int]) -> str:
    """`nodeb, nodec (ranks 1, 2)`: the hosts of some ranks, and these ranks."""
    return f"{', '.join(hosts_of(hosts, ranks))} ({name_ranks(ranks)})"
