"""What a launcher prints: which rank said what, and which rank failed first."""

from __future__ import annotations

import re
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hvdtrain.core.process.heartbeat import BEAT, Beat
from hvdtrain.core.process.preemption import BEFORE_FIRST_UPDATE, RESUMABLE_STATUS

# horovodrun over Gloo writes `[1]<stderr>:`, Open MPI's --tag-output `[1,1]<stderr>:` (job, rank).
_TAG = re.compile(r"\[(?P<job>\d+,)?(?P<rank>\d+)\]<(?:stdout|stderr|stddiag)>:")
_VERDICTS = (
    re.compile(r"Process (?P<rank>\d+) exit with status code (?P<status>\d+)"),
    re.compile(r"process rank (?P<rank>\d+) .*exited on signal (?P<signal>\d+)"),
    re.compile(r"MPI_ABORT was invoked on rank (?P<rank>\d+)"),
    re.compile(r"Process name: \[\[\d+,\d+\],(?P<rank>\d+)\]"),
)
_STATUS = re.compile(r"(?:Exit code:\s*|with errorcode )(?P<status>\d+)")
_ERROR = re.compile(r"(?:[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt)|error): .+", re.IGNORECASE)
# What ssh exits with when the remote program was killed and when the connection broke.
_SSH_STATUS = 255
# What Open MPI itself has to say stands between two such lines.
_RULE = re.compile(r"-{20,}$")
# What it says where nobody called MPI_Abort, ahead of naming the rank.
_FAREWELL = re.compile(r"Primary job +terminated")
# TensorFlow 2.21 says these when it is imported, whatever TF_CPP_MIN_LOG_LEVEL is: nothing a user can act on.
_NOISE = re.compile(
    r"WARNING: All log messages before absl::InitializeLog|To enable the following instructions:"
    r"|[IWE]\d{4}.* (?:port|cudart_stub|cpu_feature_guard|cuda_platform|util)\.cc:\d+\]"
    # Open MPI's word for passing on what it was sent.
    r"|mpirun: Forwarding signal \d+ to job"
)
# What rank 0 says when all ranks have saved and leave.
_PREEMPTED = re.compile(r"preempted at update \d+: ")
# What the other ranks say once one has gone.
_CONSEQUENCE = re.compile(
    r"Horovod has been shut down|HorovodInternalError|Horovod background loop uncaught exception|^Terminated$"
)


@dataclass(frozen=True)
class Line:
    """Output up to and with its `\\n` or `\\r`, and the rank it is from (None: the launcher itself)."""

    rank: int | None
    text: str


@dataclass(frozen=True)
class Failure:
    """The rank that failed first.

    Args:
        rank: the rank.
        status: its exit status, 128 + signal for a killed one; None when the launcher did not say.
        error: the last line it printed that reads as an error, if any.
    """

    rank: int
    status: int | None = None
    error: str | None = None

    def __str__(self) -> str:
        how = "" if self.status is None else f" ({describe_status(self.status)})"
        # One that is the whole message stands above as it is; one at a traceback's end is hard to find.
        again = self.error and not self.error.startswith("error: ")
        return f"rank {self.rank} failed first{how}" + (f": {self.error}" if again else "")


def describe_status(status: int) -> str:
    """Says an exit status in words: `exit status 3`, or `killed by SIGKILL` for 137."""
    if status == _SSH_STATUS:
        return "killed, or its host lost"
    try:
        return f"killed by {signal.Signals(status - 128).name}"
    except ValueError:
        return f"exit status {status}"


class LineSplitter:
    """Cuts one stream of a launcher into lines, with the launcher's rank tags taken off.

    A `\\r` ends a line too, so that a progress bar moves. Open MPI tags every chunk it forwards, also in the
    middle of a line, and mixes the chunks of several ranks: each rank's line is put together again.
    Heartbeats are taken out, wherever they stand.
    """

    def __init__(self, hear: Callable[[int, Beat], None] | None = None) -> None:
        """Begin.

        Args:
            hear: told of each heartbeat, with its rank.
        """
        self._hear = hear
        self._unread = ""
        self._begun: defaultdict[int | None, str] = defaultdict(str)
        self._rank: int | None = None
        self._by_open_mpi = False

    def feed(self, text: str) -> Iterator[Line]:
        """Takes the next characters and yields every line they complete."""
        *whole, self._unread = re.split(r"(?<=[\r\n])", self._unread + text)
        yield from filter(None, map(self._read, whole))

    def close(self) -> Iterator[Line]:
        """Yields what is left at the end of the stream."""
        yield from self.feed("\n" if self._unread else "")
        yield from (Line(rank, text + "\n") for rank, text in self._begun.items() if text)
        self._begun.clear()

    def _read(self, piece: str) -> Line | None:
        start = 0
        for tag in _TAG.finditer(piece):
            self._begun[self._rank] += piece[start : tag.start()]
            self._rank, self._by_open_mpi = int(tag["rank"]), tag["job"] is not None
            start = tag.end()
        rank, text = self._rank, self._begun.pop(self._rank, "") + piece[start:]
        # horovodrun writes a tag after every carriage return, Open MPI only after a line feed.
        if piece.endswith("\n") or not self._by_open_mpi:
            self._rank = None
        if rank is not None and (beat := BEAT.search(text)):
            # It may stand in the middle of a line, of which the rest follows.
            self._begun[rank] = text[: beat.start()]
            if self._hear:
                self._hear(rank, Beat.of(beat))
            return None
        return Line(rank, text.removeprefix(f"[rank {rank}] "))


class Statements:
    """Puts together what Open MPI says of its own between two rules: shown as a whole or not at all."""

    def __init__(self) -> None:
        self._begun: list[Line] = []

    def feed(self, line: Line) -> Iterator[list[Line]]:
        """Takes a line of one stream and yields what is complete; what ranks say is so at once."""
        if line.rank is not None:
            yield [line]
            return
        is_rule = _RULE.match(line.text.strip()) is not None
        if is_rule or self._begun:
            self._begun.append(line)
        if not self._begun:
            yield [line]
        elif is_rule and len(self._begun) > 1:
            yield from self.close()

    def close(self) -> Iterator[list[Line]]:
        """Yields what is left at the end of the stream."""
        if self._begun:
            yield self._begun
        self._begun = []


class FailureWatch:
    """Tells from the lines of all ranks and of the launcher which rank failed first.

    Attributes:
        heard: whether a rank has said anything, as each job does before its first update.
        preempted: what rank 0 said when the ranks left because they were told to; else None.
    """

    def __init__(self) -> None:
        self._verdicts: dict[int, int | None] = {}
        self._errors: dict[int, str] = {}
        self._bereaved: set[int] = set()
        self.heard = False
        self.preempted: str | None = None

    def says_more(self, lines: Sequence[Line]) -> bool:
        """False for what the launcher itself says about a failure that `first_failure` says shorter.

        Args:
            lines: one line, or what Open MPI put between two rules.
        """
        told = any(_FAREWELL.match(line.text.strip()) for line in lines)
        return lines[0].rank is not None or not (told or self._verdicts)

    def is_consequence(self, line: Line) -> bool:
        """True for what a rank says because another has gone."""
        # The latter is said by ranks that the launcher tells to end, and by those that are preempted.
        said = _CONSEQUENCE.search(line.text) or line.text.strip() == BEFORE_FIRST_UPDATE
        return line.rank is not None and bool(said)

    def is_said_last(self, line: Line) -> bool:
        """True for what `hvdtrain run` says itself in the end."""
        return line.rank is not None and _PREEMPTED.match(line.text) is not None

    def is_noise(self, line: Line) -> bool:
        """True for what TensorFlow says about itself at each start."""
        return _NOISE.match(line.text) is not None

    def note(self, line: Line) -> None:
        """Takes one line into account."""
        text = line.text.strip()
        self.heard = self.heard or line.rank is not None
        if line.rank is None:
            self._note_launcher(text)
        elif _PREEMPTED.match(text):
            self.preempted = text
        elif _CONSEQUENCE.search(text):
            # A rank that has said why it fails may be told to end before it has.
            if line.rank not in self._errors:
                self._bereaved.add(line.rank)
        elif _ERROR.match(text):
            self._errors[line.rank] = text

    @property
    def failing(self) -> bool:
        """Whether a rank has ended, or has lost another: the job comes to its end."""
        return bool(self._verdicts or self._bereaved)

    def first_failure(self) -> Failure | None:
        """The rank that failed first, or None when the output does not tell.

        A rank that lost its peer may exit before that peer has finished dying, so a rank that reports the
        loss gives way to one that reports an error of its own or was killed.
        """
        suspects = [rank for rank in (*self._verdicts, *self._errors) if rank not in self._bereaved]
        by_itself = [rank for rank in suspects if rank in self._errors or not self._was_told_to_end(rank)]
        rank = next(iter(by_itself or suspects), None)
        if rank is None:
            return None
        error = self._errors.get(rank)
        # A rank may be told to end while its own error is ending it.
        status = None if error and self._was_told_to_end(rank) else self._verdicts.get(rank)
        return Failure(rank, status, error)

    def _was_told_to_end(self, rank: int) -> bool:
        return self._verdicts.get(rank) in (128 + signal.SIGTERM, RESUMABLE_STATUS)

    def _note_launcher(self, text: str) -> None:
        for found in filter(None, (pattern.search(text) for pattern in _VERDICTS)):
            fields = found.groupdict()
            rank, status, signum = int(fields["rank"]), fields.get("status"), fields.get("signal")
            self._verdicts.setdefault(rank, int(status) if status else 128 + int(signum) if signum else None)
            return
        # Open MPI says the status some lines below the rank.
        if self._verdicts and (said := _STATUS.match(text)):
            last = next(reversed(self._verdicts))
            self._verdicts[last] = self._verdicts[last] or int(said["status"])
