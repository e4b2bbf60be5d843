from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.launch.output import Failure, FailureWatch, Line, LineSplitter, Statements

GLOO = (
    "[0]<stdout>:one\n[1]<stderr>:two\nfrom the launcher\n"
    "[0]<stderr>:bar 1\r[0]<stderr>:bar 2\rstill the launcher\n"
)
OPEN_MPI = (
    "[1,1]<stdout>:a[1,1]<stdout>:b[1,0]<stdout>:first\n[1,1]<stdout>:c\n"
    "mpirun's own\n[1,0]<stderr>:\rbar 1[1,0]<stderr>:\rbar 2[1,0]<stderr>:\n"
    "[1,1]<stderr>:[rank 1] error: x\n"
)


def split(text: str, cuts: list[int]) -> list[tuple[int | None, str]]:
    splitter = LineSplitter()
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    lines = [line for begin, end in pairwise(edges) for line in splitter.feed(text[begin:end])]
    return [(line.rank, line.text) for line in (*lines, *splitter.close())]


@given(cuts=st.lists(st.integers(0, len(GLOO))))
def test_horovodrun_lines_however_the_stream_is_cut(cuts: list[int]) -> None:
    launcher = [(None, "from the launcher\n"), (None, "still the launcher\n")]
    assert split(GLOO, cuts) == [
        *((0, "one\n"), (1, "two\n"), launcher[0], (0, "bar 1\r"), (0, "bar 2\r"), launcher[1]),
    ]


@given(cuts=st.lists(st.integers(0, len(OPEN_MPI))))
def test_open_mpi_lines_are_put_together_by_rank(cuts: list[int]) -> None:
    assert split(OPEN_MPI, cuts) == [
        *((0, "first\n"), (1, "abc\n"), (None, "mpirun's own\n")),
        *((0, "\r"), (0, "bar 1\r"), (0, "bar 2\n"), (1, "error: x\n")),
    ]


def test_what_is_left_at_the_end_is_shown() -> None:
    assert split("[0]<stdout>:no line feed", []) == [(0, "no line feed\n")]
    assert split("[1,1]<stdout>:half[1,0]<stdout>:whole\n", []) == [(0, "whole\n"), (1, "half\n")]


LOST = (0, "horovod.common.exceptions.HorovodInternalError: Horovod has been shut down.")
KILLED = "mpirun noticed that process rank 3 with PID 7 on node b exited on signal 11 (Segmentation fault)."
ABORTED = [
    (None, "MPI_ABORT was invoked on rank 2 in communicator MPI_COMM_WORLD"),
    (None, "with errorcode 5."),
]


def exits(rank: int, status: int) -> tuple[None, str]:
    return None, f"Process {rank} exit with status code {status}."


def exits_under_mpi(rank: int, status: int) -> list[tuple[None, str]]:
    return [(None, f"  Process name: [[30491,1],{rank}]"), (None, f"  Exit code:    {status}")]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([(1, "ValueError: bad"), exits(1, 1)], Failure(1, 1, "ValueError: bad")),
        ([LOST, exits(1, 137)], Failure(1, 137)),
        # A rank that lost its peer may be quicker to exit than the peer.
        ([(1, "pkg.CudaError: bad"), LOST, *exits_under_mpi(0, 1)], Failure(1, None, "pkg.CudaError: bad")),
        ([LOST, exits(0, 1), exits(2, 143), exits(1, 137)], Failure(1, 137)),
        # … and have the launcher end the peer while its error does.
        ([(1, "ValueError: bad"), LOST, exits(0, 1), exits(1, 143)], Failure(1, None, "ValueError: bad")),
        # … whose shell says so.
        (
            [(1, "ValueError: bad"), LOST, (1, "Terminated"), exits(0, 1), exits(1, 143)],
            Failure(1, None, "ValueError: bad"),
        ),
        ([(None, KILLED)], Failure(3, 139)),
        ([(2, "error: disk full"), *ABORTED], Failure(2, 5, "error: disk full")),
        (exits_under_mpi(2, 3), Failure(2, 3)),
        ([exits(1, 143)], Failure(1, 143)),
        ([LOST, exits(0, 1)], None),
        ([(None, "ssh: connect to host b port 22: Connection refused")], None),
        ([(0, "loss 1.5"), (0, "UserWarning: slow")], None),
    ],
)
def test_first_failure(lines: list[tuple[int | None, str]], expected: Failure | None) -> None:
    watch = FailureWatch()
    for rank, text in lines:
        watch.note(Line(rank, text + "\n"))
    assert watch.first_failure() == expected


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        (Failure(1, 137), "rank 1 failed first (killed by SIGKILL)"),
        (Failure(0, 3, "KeyError: 'x'"), "rank 0 failed first (exit status 3): KeyError: 'x'"),
        # That is all this rank says, and it has been shown.
        (Failure(0, 3, "error: no"), "rank 0 failed first (exit status 3)"),
        (Failure(0, 255), "rank 0 failed first (killed, or its host lost)"),
        (Failure(2), "rank 2 failed first"),
    ],
)
def test_failure_in_words(failure: Failure, text: str) -> None:
    assert str(failure) == text


@pytest.mark.parametrize(
    ("text", "noise"),
    [
        ("WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n", True),
        ("I0000 00:00:1795248854.049988   14469 port.cc:153] oneDNN custom operations are on.\n", True),
        ("E0000 00:00:1795248986.812522   15094 cuda_platform.cc:52] failed call to cuInit\n", True),
        ("E0000 00:00:1795248986.812522   15094 executor.cc:52] out of memory\n", False),
        ("error: the disk is full\n", False),
    ],
)
def test_only_what_tensorflow_says_of_itself_is_left_out(text: str, noise: bool) -> None:
    assert FailureWatch().is_noise(Line(0, text)) is noise


RULE = "-" * 75
# Open MPI 4.1's words, in pieces as they come, between a rank's.
FAREWELL = f"""[rank 0] error: no
{RULE}
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
{RULE}
{RULE}
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[30491,1],0]
  Exit code:    1
{RULE}
"""
NO_SLOTS = f"""{RULE}
There are not enough slots available in the system to satisfy the 9
slots that were requested by the application:
{RULE}
"""
ABORT = f"""{RULE}
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
with errorcode 1.

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
{RULE}
"""


def shown(text: str) -> str:
    watch, statements, out = FailureWatch(), Statements(), []

    def take(found: Iterable[Sequence[Line]]) -> None:
        for lines in found:
            for line in lines:
                watch.note(line)
            out.extend(line.text for line in lines if watch.says_more(lines))

    for line in text.splitlines(keepends=True):
        rank = 0 if line.startswith("[rank 0]") else None
        take(statements.feed(Line(rank, line)))
    take(statements.close())
    return "".join(out)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (FAREWELL, "[rank 0] error: no\n"),
        (ABORT, ""),
        (NO_SLOTS, NO_SLOTS),
        # Without an end, and nothing said of a rank.
        (f"{RULE}\nORTE was unable to start\n", f"{RULE}\nORTE was unable to start\n"),
        ("plain\n", "plain\n"),
    ],
)
def test_what_open_mpi_says_is_shown_as_a_whole_or_not_at_all(text: str, left: str) -> None:
    assert shown(text) == left


def test_what_ranks_say_of_the_loss_of_another_is_told_from_their_own() -> None:
    watch = FailureWatch()
    assert watch.is_consequence(Line(*LOST))
    assert watch.is_consequence(
        Line(1, "[E operations.cc:697] Horovod background loop uncaught exception: x")
    )
    assert not watch.is_consequence(Line(1, "ValueError: bad"))
    assert not watch.is_consequence(Line(None, LOST[1]))
