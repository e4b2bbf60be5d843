"""`hvdtrain run --min-np`: a job that outlives its hosts, and takes in new ones.

Ranks are started again whenever their number changes. They go on from a snapshot that some of them hold in
memory (`hvdtrain.core.run.snapshots`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.process.preemption import RESUMABLE_STATUS
from hvdtrain.core.run.snapshot_places import deletion
from hvdtrain.launch.attendants import ElasticAttendant, name_hosts
from hvdtrain.launch.discovery import Discovery, Find, by_script, run_on_each
from hvdtrain.launch.endings import Ending
from hvdtrain.launch.heartbeats import Heartbeats
from hvdtrain.launch.hosts import Host, format_hosts, hosts_of, take_slots
from hvdtrain.launch.job import Job
from hvdtrain.launch.restarts import VAIN, Restarts, say
from hvdtrain.launch.roster import Roster
from hvdtrain.launch.sizes import Sizes

_SECONDS_BETWEEN_LOOKS = 0.2
# Exit statuses of what was killed are greater.
_BY_SIGNAL = 128


@dataclass(frozen=True)
class ElasticOptions:
    """Options of `hvdtrain run` for elastic jobs.

    Attributes:
        np: ranks at the start; None: as many as there are slots.
        min_np: ranks without which the job does not go on; None: those of the start.
        max_np: ranks that it takes at most; None: as many as there are slots.
        script: that names the hosts there are; None: they are given.
        timeout: seconds in which enough slots must be there.
        reset_limit: how often ranks are started again at most; None: without end.
        cooldown: the least and the most seconds on the blacklist; None: a host stays there.
        silence: seconds without a heartbeat after which a rank is lost.
        patience: seconds without progress on any rank after which ranks are started again.
        name: of the job, by which ranks know their snapshots.
    """

    np: int | None
    min_np: int | None
    max_np: int | None
    script: str | None
    timeout: float
    reset_limit: int | None
    cooldown: tuple[int, int] | None
    silence: float
    patience: float
    name: str

    @property
    def slots_here(self) -> int:
        """Slots of this host where no other is given."""
        return self.max_np or self.np or self.min_np or 1


class ElasticJob:
    """One job, started on other hosts again and again until it has ended."""

    def __init__(self, job: Job, restarts: Restarts, options: ElasticOptions, hosts: Sequence[Host]) -> None:
        """Begin.

        Args:
            job: what is started.
            restarts: from where.
            options: that were given.
            hosts: that it may use where no script names them.

        Raises:
            LaunchError: options contradict each other, or the job cannot run on such numbers of ranks.
        """
        self._job, self._restarts, self._options = job, restarts, options
        self._used, self._deletion = set[str](), deletion(options.name)
        self._roster = Roster(options.cooldown)
        self._find: Find = by_script(options.script) if options.script is not None else lambda: hosts
        self._sizes = Sizes(job.spec, options.min_np or options.np or 1, options.max_np, options.np)
        self._sizes.check()
        # The step of the start that came furthest.
        self._furthest = -1

    def first_hosts(self) -> Sequence[Host]:
        """The hosts that it would start on if all of them answered.

        Raises:
            LaunchError: they have too few slots, or cannot be found.
        """
        found = self._find()
        size = self._sizes.largest(sum(host.slots for host in found))
        return take_slots(found, size or self._sizes.least)

    def run(self) -> int:
        """Run it to its end; returns the exit status.

        Raises:
            LaunchError: there are too few slots at the start.
            HvdtrainError: `check_job` has found a fault.
        """
        with Discovery(self._find, self._roster) as self._discovery:
            try:
                return self._run()
            finally:
                # Ranks do so when training is complete, on the hosts that they are on then.
                run_on_each(self._used, *self._deletion)

    def _run(self) -> int:
        least = self._sizes.start or self._sizes.least
        hosts = self._gather(least)
        if hosts is None:
            raise LaunchError(self._too_few(least))
        self._job.check(hosts, self._restarts.resume, self._restarts.overwrite)
        heard = Heartbeats(0)
        while True:
            attendant = ElasticAttendant(
                hosts,
                heard=partial(self._restarts.heard, heard),
                timeout=self._options.silence,
                patience=self._options.patience,
                better=partial(self._better, hosts),
            )
            self._discovery.use(host.name for host in hosts)
            self._used.update(host.name for host in hosts)
            ending = self._job.start(hosts, self._restarts.resume, self._restarts.overwrite, attendant)
            if self._is_over(ending, attendant):
                break
            heard, reason = attendant.heartbeats, ending.reason
            if ending.status != RESUMABLE_STATUS:
                self._leave(hosts, heard.suspects or ending.ranks)
            elif heard.told:
                reason = f"{name_hosts(hosts, heard.told)} was told to stop by SIGTERM"
                self._leave(hosts, heard.told)
            elif attendant.regrouping:
                reason = attendant.regrouping
            self._discovery.use(())
            found = self._gather(self._sizes.least)
            if found is None:
                say(f"{self._too_few(self._sizes.least)}: the job ends here")
                break
            hosts = found
            self._restarts.go_on(ending, reason, hosts)
            say(f"reset {len(self._restarts.done)}: {reason}; it goes on with {format_hosts(hosts)}")
        self._restarts.finish()
        return ending.status

    def _gather(self, least: int) -> Sequence[Host] | None:
        """The hosts to use now, with so many ranks or more; None where they have not come in time."""
        deadline, told = time.monotonic() + self._options.timeout, False
        while True:
            # In this order: a look that ends in between brings hosts.
            looked, there = self._discovery.looked, self._discovery.hosts()
            slots = sum(host.slots for host in there)
            size = self._sizes.largest(slots)
            if looked and size is not None and size >= least:
                if why := self._sizes.skipped(slots):
                    say(why)
                return take_slots(there, size)
            if time.monotonic() > deadline:
                return None
            if looked and not told:
                say(f"waiting for {least} slots on hosts that answer; there are {slots}")
                told = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _too_few(self, least: int) -> str:
        return f"fewer than {least} slots for {self._options.timeout:g} s (--elastic-timeout)"

    def _better(self, hosts: Sequence[Host]) -> str | None:
        """Why the job is to leave its hosts at the next update, if it is."""
        if self._spent:
            return None
        there = self._discovery.hosts()
        size = self._sizes.largest(sum(host.slots for host in there))
        if size is None:
            # It stays where it is: elsewhere it could not go on.
            return None
        now = {host.name: host.slots for host in there}
        gone = [host.name for host in hosts if now.get(host.name, 0) < host.slots]
        if gone:
            return f"{', '.join(gone)} is no longer offered"
        ranks = sum(host.slots for host in hosts)
        return f"{size} ranks can be had in place of {ranks}" if size > ranks else None

    @property
    def _spent(self) -> bool:
        limit = self._options.reset_limit
        return limit is not None and len(self._restarts.done) >= limit

    def _is_over(self, ending: Ending, attendant: ElasticAttendant) -> bool:
        if ending.status == 0 or ending.asked:
            return True
        if self._spent:
            say(f"the job ends here: --reset-limit {self._options.reset_limit} is reached")
            return True
        if self._restarts.is_vain(ending, self._has_moved(ending, attendant)):
            say(VAIN)
            return True
        return False

    def _has_moved(self, ending: Ending, attendant: ElasticAttendant) -> bool:
        """Whether ranks have come further since they were started last."""
        heartbeats, furthest = attendant.heartbeats, self._furthest
        self._furthest = max(furthest, heartbeats.step)
        if attendant.regrouping is not None or heartbeats.first_update_at is None:
            return attendant.regrouping is not None
        # Errors and hangs come again at the same update; ranks that are killed or lost may have had bad luck.
        again = attendant.hung or (bool(ending.ranks) and ending.status < _BY_SIGNAL)
        return not again or heartbeats.step > furthest

    def _leave(self, hosts: Sequence[Host], ranks: Sequence[int]) -> None:
        """Put the hosts of these ranks on the blacklist, but those that the job needs."""
        for name in hosts_of(hosts, ranks):
            others = self._discovery.without(name)
            if self._sizes.largest(sum(host.slots for host in others)) is None:
                say(f"{name} stays off the blacklist: without it there are fewer than --min-np slots")
                continue
            seconds = self._discovery.blacklist(name)
            say(f"{name} is on the blacklist" + ("" if seconds is None else f" for {seconds:.0f} s"))
