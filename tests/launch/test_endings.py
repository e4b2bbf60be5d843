"""How a job ended, and when it is started again."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.core.checkpoints.manifest import FORMAT, MANIFEST_FILE, SPEC_FILE, FileRecord, Manifest
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.state import COMPRESSION_FILE, OPTIMIZER_FILE, STATE_FILE
from hvdtrain.core.process.preemption import BEFORE_FIRST_UPDATE
from hvdtrain.core.run.output_dir import RESTARTS_FILE
from hvdtrain.launch.endings import Ending, ending_of
from hvdtrain.launch.hosts import Host
from hvdtrain.launch.output import FailureWatch, Line
from hvdtrain.launch.restarts import FixedJob, Restarts

SAID = "preempted at update 4: go on with --resume out/checkpoint-4"
EXITED = "Process {} exit with status code {}."


@pytest.mark.parametrize(
    ("lines", "status", "asked", "expected"),
    [
        ([], 0, False, Ending(0)),
        # horovodrun's own status is 1 whatever its ranks' are, and the others are told to end.
        ([(0, SAID), (None, EXITED.format(1, 85)), (None, EXITED.format(0, 143))], 1, True, Ending(85, SAID)),
        ([(0, "a.Warning: of some Error: kind"), (0, SAID)], 85, False, Ending(85, SAID)),
        ([(0, BEFORE_FIRST_UPDATE), (None, EXITED.format(0, 85))], 1, False, Ending(85, BEFORE_FIRST_UPDATE)),
        # A rank that has not come to heed signals.
        ([(None, EXITED.format(0, 138))], 1, True, Ending(85, BEFORE_FIRST_UPDATE)),
        # Told to end by the launcher, because another has failed.
        (
            [(1, "ValueError: x"), (None, EXITED.format(0, 85)), (None, EXITED.format(1, 1))],
            1,
            False,
            Ending(1, "rank 1 failed first (exit status 1): ValueError: x", "ValueError: x", (1,)),
        ),
        (
            [(0, BEFORE_FIRST_UPDATE), (None, EXITED.format(1, 137))],
            1,
            False,
            Ending(137, "rank 1 failed first (killed by SIGKILL)", "killed by SIGKILL", (1,)),
        ),
    ],
)
def test_how_a_job_ended(
    lines: list[tuple[int | None, str]], status: int, asked: bool, expected: Ending
) -> None:
    attendant = FailureWatch()
    for rank, text in lines:
        attendant.note(Line(rank, f"{text}\n"))
    assert ending_of(status, attendant, asked) == expected
    assert attendant.heard == any(rank is not None for rank, _ in lines)


def write_checkpoint(folder: Path, step: int) -> Path:
    """A checkpoint that is whole, with nothing in its files."""
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    names = (WEIGHTS_FILE, OPTIMIZER_FILE, COMPRESSION_FILE, STATE_FILE)
    for name in names:
        (place / name).touch()
    files = dict.fromkeys(names, FileRecord.of(b""))
    manifest = Manifest(FORMAT, step, "2026-01-01T00:00:00+00:00", "torch", 2, {}, "", {}, files)
    (place / MANIFEST_FILE).write_text(manifest.text())
    return place


def crash(cause: str, status: int = 1) -> Ending:
    return Ending(status, f"rank 0 failed first: {cause}", cause)


class Jobs:
    """Runs that save a checkpoint or not, and end as they are told to."""

    def __init__(self, folder: Path, *runs: tuple[int | None, Ending]) -> None:
        self.resumed: list[str | None] = []
        self.overwrote: list[bool] = []
        self._folder, self._runs = folder, iter(runs)

    def check(self, hosts: Sequence[Host], resume: Path | None, overwrite: bool) -> None:
        del hosts, resume, overwrite

    def start(self, hosts: Sequence[Host], resume: Path | None, overwrite: bool, attendant: Any) -> Ending:
        del hosts, attendant
        self.resumed.append(resume.name if resume else None)
        self.overwrote.append(overwrite)
        step, ending = next(self._runs)
        if step is not None:
            (self._folder / SPEC_FILE).touch()
            write_checkpoint(self._folder, step)
        return ending


def run(jobs: Jobs, folder: Path, resume: Path | None, overwrite: bool, most: int) -> int:
    job: Any = jobs
    return FixedJob(job, Restarts(folder, resume, overwrite), (Host("localhost", 2),), most).run()


DONE, KILLED, PREEMPTED = Ending(0), crash("killed by SIGKILL", 137), Ending(85, SAID)


@pytest.mark.parametrize(
    ("runs", "most", "status", "resumed"),
    [
        ([(None, KILLED)], 0, 137, [None]),
        (
            [(None, KILLED), (4, KILLED), (8, crash("x")), (None, DONE)],
            3,
            0,
            [None, None, "auto", "auto"],
        ),
        ([(None, KILLED), (4, KILLED)], 1, 137, [None, None]),
        # Each goes as far as the one before.
        (
            [(4, crash("x")), (None, crash("x")), (None, crash("x"))],
            9,
            1,
            [None, "auto", "auto"],
        ),
        ([(None, crash("x")), (None, crash("y")), (None, crash("x")), (12, DONE)], 9, 0, [None] * 4),
        ([(4, PREEMPTED)], 9, 85, [None]),
        # Somebody has told it to end.
        ([(4, crash("killed by SIGTERM", 143))], 9, 143, [None]),
        ([(4, Ending(130, "stopped by SIGINT"))], 9, 130, [None]),
    ],
)
def test_what_is_started_again_and_from_where(
    runs: list[tuple[int | None, Ending]],
    most: int,
    status: int,
    resumed: list[str | None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs = Jobs(tmp_path, *runs)
    assert run(jobs, tmp_path, None, False, most) == status
    assert jobs.resumed == resumed
    file = tmp_path / RESTARTS_FILE
    noted = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert [line["status"] for line in noted] == [ending.status for _, ending in runs[: len(resumed) - 1]]
    assert [Path(line["resume"]).name if line["resume"] else None for line in noted] == resumed[1:]
    told = capsys.readouterr().err
    assert all(told.count(f"{line['reason']}; restart {line['number']} ") == 1 for line in noted)
    assert ("not restarted again" in told) == (len(runs) == len(resumed) == 3 and most == 9)


def test_checkpoints_of_an_older_run_are_left_alone(tmp_path: Path) -> None:
    older = write_checkpoint(tmp_path, 100)
    for given in (None, older):
        jobs = Jobs(tmp_path, (None, crash("x")), (None, DONE))
        assert run(jobs, tmp_path, given, False, 3) == 0
        # Nothing tells that the run which is there is that of the job.
        assert jobs.resumed == [given and given.name] * 2
        assert not any(jobs.overwrote)


@pytest.mark.parametrize("given", [None, "auto", "OUT/checkpoint-100", "ELSE/checkpoint-4"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_restart_takes_the_place_of_what_its_own_run_has_left(
    given: str | None, overwrite: bool, tmp_path: Path
) -> None:
    out = tmp_path / "OUT"
    older = write_checkpoint(out, 100)
    (out / SPEC_FILE).touch()
    told: list[tuple[str, bool]] = []

    class Told(Jobs):
        def __init__(self) -> None:
            super().__init__(out)

        def start(self, hosts: Any, resume: Path | None, overwrite: bool, attendant: Any) -> Ending:
            told.append((str(resume), overwrite))
            number = len(told) - 1
            if number == 1 and given in (None, "ELSE/checkpoint-4"):
                # As the run does that begins there.
                shutil.rmtree(older)
            if number:
                # The system's clock may stand still between two runs that do nothing.
                os.utime(out / SPEC_FILE, ns=(number, number))
            if number == 3:
                write_checkpoint(out, 108)
            return DONE if number == 4 else crash(str(number))

    own = given != "ELSE/checkpoint-4"
    resume = given and Path(given.replace("OUT", str(out)).replace("ELSE", str(tmp_path)))
    assert run(Told(), out, resume or None, overwrite, 9) == 0
    # The first has come to nothing: what is there is still of another run.
    assert told[:2] == [(str(resume), overwrite)] * 2
    assert told[2:4] == [("auto", False) if own else (str(resume), True)] * 2
    assert told[4] == ("auto", False)


def test_an_older_runs_restarts_stay_or_go_with_it(tmp_path: Path) -> None:
    file = tmp_path / RESTARTS_FILE
    file.write_text("older\n")
    assert run(Jobs(tmp_path, (None, crash("x")), (None, DONE)), tmp_path, None, False, 1) == 0
    assert [line[:5] for line in file.read_text().splitlines()] == ["older", '{"num']

    class Replacing(Jobs):
        def start(self, hosts: Any, resume: Path | None, overwrite: bool, attendant: Any) -> Ending:
            # What rank 0 does with an older run, also in the place of what the job itself has left.
            assert overwrite
            file.unlink(missing_ok=True)
            (tmp_path / SPEC_FILE).write_text(str(len(self.resumed)))
            return super().start(hosts, resume, overwrite, attendant)

    jobs = Replacing(tmp_path, (None, crash("x")), (None, crash("y")), (None, DONE))
    # Of another run, from which it begins each time.
    assert run(jobs, tmp_path, tmp_path / "else" / "checkpoint-4", True, 2) == 0
    assert [json.loads(line)["number"] for line in file.read_text().splitlines()] == [1, 2]
