"""Jobs that are started again: from which checkpoint, why, and when that is of no use."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from hvdtrain.core.checkpoints.finding import AUTO, checkpoints_in
from hvdtrain.core.checkpoints.manifest import SPEC_FILE, STATE_FILE
from hvdtrain.core.process.files import write_whole
from hvdtrain.core.run.output_dir import RESTARTS_FILE, goes_on_in
from hvdtrain.launch.attendants import Attendant
from hvdtrain.launch.endings import Ending
from hvdtrain.launch.heartbeats import Heartbeats
from hvdtrain.launch.hosts import Host, format_hosts
from hvdtrain.launch.job import Job


@dataclass(frozen=True)
class Restart:
    """One restart.

    Attributes:
        number: from 1.
        time: date and time in UTC, as ISO 8601 has them.
        status: exit status of the job before it.
        reason: why that job ended.
        hosts: that it was started on, as `-H` takes them.
        ranks: how many.
        resume: what ranks were told to go on from, unless they hold a later snapshot: a checkpoint, or
            `auto`; None: the start.
        step: updates that counted where it went on; None: it did not come so far.
        recovery_s: seconds between the last update before it and the first one after it that the launcher
            has heard of; None: there was none yet.
    """

    number: int
    time: str
    status: int
    reason: str
    hosts: str
    ranks: int
    resume: str | None
    step: int | None = None
    recovery_s: float | None = None

    def __str__(self) -> str:
        what = "has come to no update"
        if self.recovery_s is not None:
            what = f"went on from update {self.step}, after {self.recovery_s:.0f} s"
        return f"{self.reason}; restart {self.number} on {self.hosts} {what}"


class Restarts:
    """From where a job is started again. Each restart is a line of `restarts.jsonl` in its output directory.

    Attributes:
        resume: the checkpoint to go on from, or `AUTO`.
        overwrite: whether the run that is there is deleted.
        done: the restarts so far.
    """

    def __init__(self, output_dir: Path, resume: Path | None, overwrite: bool) -> None:
        """Begin.

        Args:
            output_dir: where rank 0 writes; what is written there is only found where it is seen from here.
            resume: the checkpoint to go on from at first.
            overwrite: whether the run that is there at first is deleted.
        """
        self.resume, self.overwrite = resume, overwrite
        self.done: list[Restart] = []
        self._output_dir, self._text = output_dir, ""
        # Another run may have left its own.
        self._before, self._others = _written(output_dir), _begun(output_dir)
        self._vain: str | None = None

    def is_vain(self, ending: Ending, advanced: bool = False) -> bool:
        """Whether a job has failed twice in a row with the same error, and come no further.

        Args:
            ending: of the job.
            advanced: whether it has come further without a checkpoint.
        """
        written = _written(self._output_dir)
        advanced, self._before = advanced or bool(written - self._before), written
        before, self._vain = self._vain, None if advanced else ending.cause or ending.told
        return self._vain is not None and before == self._vain

    def go_on(self, ending: Ending, reason: str, hosts: Sequence[Host]) -> None:
        """Decide from where the job is started again, and note it.

        Args:
            ending: of the job.
            reason: why it has ended.
            hosts: that it is started on.
        """
        if _begun(self._output_dir) != self._others:
            # What is there is of the job itself: it has deleted other runs, and set later checkpoints aside.
            own = self.resume is None or goes_on_in(self._output_dir, self.resume)
            if own or _written(self._output_dir):
                # Rank 0 chooses, for it reads every byte before it goes on.
                self.resume = AUTO
            self.overwrite = self.resume != AUTO
        self.done.append(
            Restart(
                number=len(self.done) + 1,
                time=datetime.now(UTC).isoformat(timespec="seconds"),
                status=ending.status,
                reason=reason,
                hosts=format_hosts(hosts),
                ranks=sum(host.slots for host in hosts),
                resume=str(self.resume) if self.resume else None,
            )
        )
        self._write()

    def heard(self, before: Heartbeats, now: Heartbeats) -> None:
        """Note where the last restart has gone on, once that is known.

        Args:
            before: of the job that had ended.
            now: of the one that was started.
        """
        if not self.done or self.done[-1].recovery_s is not None or now.first_update_at is None:
            return
        took = now.first_update_at - before.last_update_at
        self.done[-1] = replace(self.done[-1], step=now.begun, recovery_s=round(took, 1))
        self._write()

    def finish(self) -> None:
        """Print all restarts on standard error."""
        if self.done:
            # Ranks of the last one may have deleted the file with what they have replaced.
            self._write()
        for restart in self.done:
            say(str(restart))

    def _write(self) -> None:
        path = self._output_dir / RESTARTS_FILE
        try:
            found = path.read_text(encoding="utf-8") if path.exists() else ""
            # Ranks that replace a run delete it, and an older run's lines stay where they do not.
            older = found.removesuffix(self._text)
            self._text = "".join(f"{json.dumps(asdict(each))}\n" for each in self.done)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, older + self._text)
        except OSError as error:
            say(f"{path}: cannot be written: {error.strerror}")


class FixedJob:
    """One job on the same hosts, started again when it has crashed."""

    def __init__(self, job: Job, restarts: Restarts, hosts: Sequence[Host], most: int) -> None:
        """Begin.

        Args:
            job: what is started.
            restarts: from where.
            hosts: that it runs on.
            most: how often it is started again at most.
        """
        self._job, self._restarts, self._hosts, self._most = job, restarts, hosts, most

    def first_hosts(self) -> Sequence[Host]:
        """The hosts that it starts on."""
        return self._hosts

    def run(self) -> int:
        """Run it until it ends well, or starting it again is of no use.

        Ranks that were told to stop are not started again, nor is a job that fails twice in a row with the
        same error and without a new checkpoint.

        Returns:
            The exit status of the last run.

        Raises:
            HvdtrainError: `check_job` has found a fault.
        """
        restarts, hosts = self._restarts, self._hosts
        self._job.check(hosts, restarts.resume, restarts.overwrite)
        heard = Heartbeats(0)
        while True:
            attendant = Attendant(hosts, partial(restarts.heard, heard)) if self._most else None
            ending = self._job.start(hosts, restarts.resume, restarts.overwrite, attendant)
            if not ending.crashed or len(restarts.done) == self._most or attendant is None:
                break
            if restarts.is_vain(ending):
                say(VAIN)
                break
            heard = attendant.heartbeats
            restarts.go_on(ending, ending.reason, hosts)
            how = f"with --resume {restarts.resume}" if restarts.resume else "from the start"
            say(f"restart {len(restarts.done)} of at most {self._most}, {how}")
        restarts.finish()
        return ending.status


VAIN = "it has failed twice with the same error, and has come no further: not restarted again"


def say(text: str) -> None:
    """Print a line of `hvdtrain run` itself on standard error."""
    print(f"hvdtrain: {text}", file=sys.stderr)


def _written(output_dir: Path) -> frozenset[tuple[Path, int]]:
    """The checkpoints in an output directory, and when each was written."""
    states = [path / STATE_FILE for path in checkpoints_in(output_dir)]
    return frozenset((state.parent, state.stat().st_mtime_ns) for state in states if state.is_file())


def _begun(output_dir: Path) -> int | None:
    """When the run in an output directory began or went on; None where there is none."""
    try:
        return (output_dir / SPEC_FILE).stat().st_mtime_ns
    except OSError:
        return None
