"""What an elastic job does when hosts are lost and found: which it uses, which it blames, when it ends."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.process.heartbeat import Beat
from hvdtrain.core.run.output_dir import RESTARTS_FILE
from hvdtrain.core.spec.job_spec import load_spec
from hvdtrain.launch import discovery
from hvdtrain.launch.attendants import ElasticAttendant
from hvdtrain.launch.elastic import ElasticJob, ElasticOptions
from hvdtrain.launch.endings import Ending
from hvdtrain.launch.hosts import Host, format_hosts, parse_hosts
from hvdtrain.launch.restarts import Restarts

DONE = Ending(0)
PREEMPTED = Ending(85, "preempted at update 4: go on with --resume out/checkpoint-4")
# What hosts were told to run.
told_to: list[tuple[str, tuple[str, ...]]] = []
# The same, once the launcher has asked for it.
REGROUPED = replace(PREEMPTED)
HUNG = Ending(255, "no rank has come further for 1800 s (--stall-timeout)", "no rank has come further")


def lost(*ranks: int, cause: str = "killed by SIGKILL") -> Ending:
    return Ending(137, f"rank {ranks[0]} failed first ({cause})" if ranks else "x", cause, ranks)


class ScriptedJob:
    """Runs that end as they are told to, after so many updates, while hosts come and go."""

    def __init__(self, *runs: tuple[int, Ending]) -> None:
        self.spec = load_spec(
            "bert", ["batch=null", "batch={per_device_train_batch_size: 1, global_batch_size: 12}"]
        )
        self.hosts: list[str] = []
        self._runs, self._step = iter(runs), 0

    def check(self, hosts: Sequence[Host], resume: Path | None, overwrite: bool) -> None:
        del hosts, resume, overwrite

    def start(
        self, hosts: Sequence[Host], resume: Path | None, overwrite: bool, attendant: ElasticAttendant
    ) -> Ending:
        del resume, overwrite
        self.hosts.append(format_hosts(hosts))
        updates, ending = next(self._runs)
        for step in range(updates + 1):
            attendant.heartbeats.hear(0, Beat(1, self._step + step))
        self._step += updates
        stopped: list[bool] = []
        while ending is REGROUPED and not stopped:
            # What there is meanwhile is seen by a thread.
            assert attendant.look(lambda: stopped.append(True)) is None
        return ending


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The hosts that answer; a test may change them."""
    answering = set("abc")
    monkeypatch.setattr(discovery, "who_answers", answering.intersection)
    monkeypatch.setattr(discovery, "_SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(discovery, "run_on", lambda name, *command: told_to.append((name, command)))
    told_to.clear()
    return answering


def run(folder: Path, job: ScriptedJob, hosts: str = "a:1,b:1,c:1", **given: Any) -> int:
    options = ElasticOptions(
        **{
            "np": None,
            "min_np": 1,
            "max_np": 3,
            "script": None,
            "timeout": 0.2,
            "reset_limit": None,
            "cooldown": None,
            "silence": 30.0,
            "patience": 1800.0,
            "name": "job",
        }
        | given
    )
    scripted: Any = job
    return ElasticJob(scripted, Restarts(folder, None, False), options, parse_hosts(hosts)).run()


def notes(folder: Path) -> Iterator[tuple[int, str, int | None]]:
    for line in (folder / RESTARTS_FILE).read_text().splitlines():
        note = json.loads(line)
        yield note["ranks"], note["hosts"], note["step"]


def test_the_host_of_a_failed_rank_is_left_and_a_new_one_is_taken_in(there: set[str], tmp_path: Path) -> None:
    job = ScriptedJob((4, lost(1)), (2, lost(1)), (3, DONE))
    assert run(tmp_path, job) == 0
    assert job.hosts == ["a:1,b:1,c:1", "a:1,c:1", "a:1"]
    assert [(ranks, hosts) for ranks, hosts, _ in notes(tmp_path)] == [(2, "a:1,c:1"), (1, "a:1")]


def test_snapshots_are_deleted_on_all_hosts_it_was_on_however_it_ends(
    there: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVDTRAIN_SNAPSHOT_DIR", f"{tmp_path}/of mine")
    root = tmp_path / "of mine" / f"hvdtrain-snapshots-{os.getuid()}"
    for name in ("job", "another"):
        (root / name / "a" / "checkpoint-4").mkdir(parents=True)
    assert run(tmp_path, ScriptedJob((4, lost(1)), (2, Ending(143, "x", asked=True)))) == 143
    assert sorted(name for name, _ in told_to) == ["a", "b", "c"]
    # No such host is this one, but what it is told would do the same there.
    subprocess.run(told_to[0][1], check=True)
    assert [path.name for path in root.iterdir()] == ["another"]
    told_to.clear()
    (root / "job" / "a").mkdir(parents=True)
    there.add("localhost")
    assert run(tmp_path, ScriptedJob((1, DONE)), "localhost:1", max_np=1) == 0
    assert not told_to
    assert [path.name for path in root.iterdir()] == ["another"]


def test_a_host_that_comes_is_used_from_the_next_update_on(there: set[str], tmp_path: Path) -> None:
    there.difference_update("bc")
    job = ScriptedJob((1, REGROUPED), (1, REGROUPED), (1, DONE))
    plain = job.start

    def start(hosts: Sequence[Host], *rest: Any) -> Ending:
        there.add("bc"[len(job.hosts)] if len(job.hosts) < 2 else "a")
        return plain(hosts, *rest)

    job.start = start  # type: ignore[method-assign]
    assert run(tmp_path, job) == 0
    # Those that were there keep their places, and so does rank 0.
    assert job.hosts == ["a:1", "a:1,b:1", "a:1,b:1,c:1"]


def test_a_host_of_which_a_rank_is_told_to_stop_is_left(
    there: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ScriptedJob((4, PREEMPTED), (2, PREEMPTED), (1, PREEMPTED), (3, DONE))
    plain = job.start

    def start(hosts: Sequence[Host], resume: Any, overwrite: bool, attendant: ElasticAttendant) -> Ending:
        ending = plain(hosts, resume, overwrite, attendant)
        if ending is PREEMPTED:
            attendant.heartbeats.hear(len(hosts) - 1, Beat(1, job._step, told=True))
        return ending

    job.start = start  # type: ignore[method-assign]
    assert run(tmp_path, job) == 0
    # There is no other host in the end.
    assert job.hosts == ["a:1,b:1,c:1", "a:1,b:1", "a:1", "a:1"]
    told = capsys.readouterr().err
    assert "reset 1: c (rank 2) was told to stop by SIGTERM; it goes on with a:1,b:1\n" in told
    assert "a stays off the blacklist" in told


def test_hosts_without_which_there_are_too_few_slots_are_not_condemned(
    there: set[str], tmp_path: Path
) -> None:
    job = ScriptedJob((1, lost(0)), (1, lost(0)), (1, DONE))
    assert run(tmp_path, job, "a:2", min_np=2, max_np=2) == 0
    assert job.hosts == ["a:2"] * 3


def test_too_few_slots_for_too_long_end_the_job(
    there: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ScriptedJob((1, lost(2)), (1, DONE))
    plain = job.start

    def start(*given: Any) -> Ending:
        there.clear()
        return plain(*given)

    job.start = start  # type: ignore[method-assign]
    assert run(tmp_path, job, min_np=2) == 137
    told = capsys.readouterr().err
    assert "fewer than 2 slots for 0.2 s (--elastic-timeout): the job ends here" in told
    assert all(told.count(f"hvdtrain: {name} does not answer over ssh") == 1 for name in "ab")
    there.update("ab")
    # It is -np that the start waits for.
    with pytest.raises(LaunchError, match="fewer than 3 slots"):
        run(tmp_path, ScriptedJob(), min_np=2, np=3)


def test_resets_are_limited(there: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ScriptedJob(*[(1, lost(0))] * 3)
    assert run(tmp_path, job, "a:1", max_np=1, reset_limit=2) == 137
    assert len(job.hosts) == 3
    assert "--reset-limit 2 is reached" in capsys.readouterr().err


def test_what_fails_twice_in_the_same_way_without_an_update_is_not_started_again(
    there: set[str], tmp_path: Path
) -> None:
    job = ScriptedJob((1, lost(0, cause="x")), (0, lost(0, cause="x")), (0, lost(0, cause="x")))
    assert run(tmp_path, job, "a:1", max_np=1) == 137
    assert len(job.hosts) == 3


@pytest.mark.parametrize(
    ("ending", "starts"),
    [
        # It comes again at update 25, whichever snapshot ranks go on from.
        (Ending(1, "rank 0 failed first", "ValueError: x", (0,)), 3),
        (HUNG, 3),
        (lost(0), 5),
        (Ending(255, "the launcher failed", "exit status 255"), 5),
    ],
)
def test_an_error_that_comes_again_before_new_updates_ends_the_job_and_bad_luck_does_not(
    ending: Ending, starts: int, there: set[str], tmp_path: Path
) -> None:
    job = ScriptedJob((25, ending), *[(5, ending)] * 3, (6, DONE))
    plain = job.start

    def start(*given: Any) -> Ending:
        job._step = min(job._step, 20)
        if ending is HUNG:
            given[-1].hung = True
        return plain(*given)

    job.start = start  # type: ignore[method-assign]
    assert run(tmp_path, job, "a:1", max_np=1) == (0 if starts == 5 else ending.status)
    assert len(job.hosts) == starts


@pytest.mark.parametrize("ending", [Ending(85, "preempted", asked=True), Ending(143, "x", asked=True)])
def test_who_is_told_to_stop_by_a_signal_is_not_started_again(
    ending: Ending, there: set[str], tmp_path: Path
) -> None:
    job = ScriptedJob((4, ending))
    assert run(tmp_path, job) == ending.status
    assert len(job.hosts) == 1


def test_silent_hosts_are_blamed_and_not_those_that_have_missed_them(there: set[str], tmp_path: Path) -> None:
    job = ScriptedJob((1, Ending(1, "the launcher failed (exit status 1); see above", "x")), (1, DONE))
    plain = job.start

    def start(
        hosts: Sequence[Host], resume: Path | None, overwrite: bool, attendant: ElasticAttendant
    ) -> Ending:
        for _ in range(20 if not job.hosts else 0):
            attendant.heartbeats.let_pass(1.0, failed=False)
            for rank in (0, 2):
                attendant.heartbeats.hear(rank, Beat(1, -1))
            assert attendant.look(lambda: None) is None
        return plain(hosts, resume, overwrite, attendant)

    job.start = start  # type: ignore[method-assign]
    assert run(tmp_path, job) == 0
    assert job.hosts == ["a:1,b:1,c:1", "a:1,c:1"]


def test_a_job_that_is_told_to_stop_before_each_first_update_ends(there: set[str], tmp_path: Path) -> None:
    told = Ending(85, "preempted before the first update")
    job = ScriptedJob((2, told), (0, told), (0, told))
    assert run(tmp_path, job) == 85
    assert len(job.hosts) == 3


def test_a_script_names_the_hosts(there: set[str], tmp_path: Path) -> None:
    job = ScriptedJob((1, DONE))
    assert run(tmp_path, job, script="echo b:2,c:1") == 0
    assert job.hosts == ["b:2,c:1"]
