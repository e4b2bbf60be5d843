"""Snapshots of elastic runs, on ranks that are threads and hosts that are folders."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.checkpoints import finding
from hvdtrain.core.checkpoints.arrays import ArrayStream, write_arrays
from hvdtrain.core.checkpoints.finding import AUTO, checkpoints_in, step_of
from hvdtrain.core.checkpoints.manifest import MANIFEST_FILE
from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.rank_files import rank_file
from hvdtrain.core.errors import CheckpointError, HvdtrainError
from hvdtrain.core.process.preemption import Preempted
from hvdtrain.core.run import output_dir, saving, snapshot_places, snapshots
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.job import train_spec
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.requests import Requests
from hvdtrain.core.run.results import TrainingResult, UpdateResult
from hvdtrain.core.run.snapshots import SnapshotOptions, Snapshots
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import load_spec
from tests.core.test_going_on import Counting
from tests.jobs.runs import TINY, small_corpus

SETS = (
    *TINY,
    "model.dtype=float64",
    "batch={per_device_train_batch_size: 1, global_batch_size: 12}",
    "max_steps=9",
    "logging.progress_bar=false",
)
OPTIONS = SnapshotOptions("job", 2)
WRITER = "checkpoint-writer"
BIAS = "cls.predictions.bias"


class Lost(Exception):
    pass


class Meeting:
    """Collectives of ranks that are threads."""

    def __init__(self, size: int) -> None:
        self._barrier, self._given = threading.Barrier(size, timeout=60), list[Any]([None] * size)

    def ranks(self, rank: int) -> Ranks:
        def meet(value: Any) -> list[Any]:
            self._given[rank] = value
            self._barrier.wait()
            found = list(self._given)
            self._barrier.wait()
            return found

        return Ranks(
            World(rank, len(self._given), 0, 1, 1),
            lambda array, name: np.sum(meet(array), axis=0),
            lambda array, name: meet(array)[0].copy(),
            lambda data, name: meet(data),
        )

    def leave(self) -> None:
        self._barrier.abort()


class Doomed(Counting):
    """Its updates sum over ranks what is asked of them, and end it at one of them."""

    here = threading.local()

    def update(self, window: Any, divisor: float, weight: float, rate: float, number: int, *rest: Any) -> Any:
        if number == self.here.last:
            raise Lost
        ranks, requests = self.here.ranks, rest[1]
        sums = ranks.sum(np.array([weight, *requests], np.float64))
        stopped = self.here.stop == number
        found: UpdateResult = super().update(window, divisor, float(sums[0]), rate, number, *rest)
        return replace(found, requests=Requests(stopped, 0.0))


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where each host has its memory."""
    here = Doomed.here
    monkeypatch.setattr(snapshots, "socket", SimpleNamespace(gethostname=lambda: here.host))
    monkeypatch.setattr(snapshot_places, "_places", lambda: [tmp_path / "hosts" / here.host])
    return tmp_path / "hosts"


def on_hosts(names: str, work: Callable[[Ranks], Any], **here: Any) -> list[Any]:
    """What each rank's work returns, or the error that ends it; a rank that fails ends the others."""
    meeting, found = Meeting(len(names)), list[Any]([None] * len(names))

    def run(rank: int) -> None:
        ranks = meeting.ranks(rank)
        vars(Doomed.here).update({"host": names[rank], "ranks": ranks, "last": None, "stop": None} | here)
        try:
            found[rank] = work(ranks)
        except CheckpointError as error:
            found[rank] = error
            meeting.leave()
        except (Lost, Preempted, threading.BrokenBarrierError) as error:
            # All are lost at the same update; to leave would end one that is still on its way there.
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(names))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def train(
    hosts: Path, names: str, out: str, sets: Sequence[str] = (), resume: Path | None = None, **here: Any
) -> list[Any]:
    root = hosts.parent
    spec = load_spec("bert", [*SETS, f"data.cache_dir={root}/cache", *small_corpus(root / "corpus"), *sets])
    framework = Framework("torch", None, None, Doomed, None, (), frozenset())  # type: ignore[arg-type]
    hosts.mkdir(exist_ok=True)
    return on_hosts(
        names,
        lambda ranks: train_spec(framework, ranks, spec, root / out, resume, snapshots=OPTIONS),
        **here,
    )


def held(hosts: Path, name: str) -> list[Path]:
    return checkpoints_in(hosts / name / OPTIONS.job / name)


def steps(hosts: Path, name: str) -> list[int]:
    return [step_of(place) for place in held(hosts, name)]


def test_rank_0_and_one_neighbour_keep_the_newest_two_alike(hosts: Path) -> None:
    left = [hosts / name / OPTIONS.job / name / ".checkpoint-2.parts-of-killed-ranks" for name in "ab"]
    for place in left:
        place.mkdir(parents=True)
    train(hosts, "aabc", "out", last=8)
    assert not any(place.exists() for place in left)
    assert {name: steps(hosts, name) for name in "abc"} == {"a": [4, 6], "b": [4, 6], "c": []}
    for mine, other in zip(held(hosts, "a"), held(hosts, "b"), strict=True):
        assert {rank_file(rank) for rank in range(4)} < {file.name for file in mine.iterdir()}
        for file in mine.iterdir():
            if file.name != MANIFEST_FILE:
                assert file.read_bytes() == (other / file.name).read_bytes(), file.name


def test_on_one_host_each_rank_writes_its_own_file(hosts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, str]] = []

    def write(path: Path, stream: Any) -> Any:
        written.append((path.name, rank_file(Doomed.here.ranks.rank)))
        return write_arrays(path, stream)

    monkeypatch.setattr("hvdtrain.core.checkpoints.rank_files.write_arrays", write)
    train(hosts, "aaa", "out", last=4)
    assert sorted(written) == [(rank_file(rank), rank_file(rank)) for rank in range(3) for _ in range(2)]
    assert steps(hosts, "a") == [0, 2]


# Rank 0's host is lost, that of its neighbour is, or neither; and what is left comes in another order.
@pytest.mark.parametrize("names", ["b", "a", "cb", "cba"])
def test_the_run_goes_on_where_the_last_snapshot_was_taken_on_any_hosts_that_are_left(
    hosts: Path, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_PIECE", 1000)
    train(hosts, "abc", "first", last=8)
    # Hosts share no file system.
    found = train(hosts, names, "second")
    assert all(isinstance(result, TrainingResult) and result.state.step == 9 for result in found), found
    assert [line["step"] for line in read_metrics(hosts.parent / "second")[0]] == [7, 8, 9]
    # Each update adds 1.
    assert load_model(hosts.parent / "second" / "model")[BIAS][0] == 9.0
    # It has ended well, and leaves nothing in the memory of the hosts that it was on.
    assert not any((hosts / name / OPTIONS.job).exists() for name in names)


def test_with_a_shared_directory_its_metrics_are_those_of_one_run(hosts: Path) -> None:
    train(hosts, "abc", "out", last=8)
    train(hosts, "bc", "out")
    assert [line["step"] for line in read_metrics(hosts.parent / "out")[0]] == [*range(1, 10)]


def test_a_job_that_is_told_to_stop_keeps_a_snapshot_of_that_update(hosts: Path) -> None:
    assert all(isinstance(found, Preempted) for found in train(hosts, "ab", "out", stop=3))
    assert (steps(hosts, "a"), steps(hosts, "b")) == ([2, 3], [2, 3])
    assert (hosts.parent / "out" / "checkpoint-3").is_dir()


def test_there_is_one_copy_of_the_state_for_snapshots_and_checkpoints(
    hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, write, writing = ArrayStream.snapshot, saving.save_model, list[list[str]]()

    def copied(stream: ArrayStream) -> ArrayStream:
        writing.append([thread.name for thread in threading.enumerate() if thread.name == WRITER])
        return copy(stream)

    def written_slowly(*given: Any) -> None:
        time.sleep(0.1)
        write(*given)

    monkeypatch.setattr(ArrayStream, "snapshot", copied)
    monkeypatch.setattr(saving, "save_model", written_slowly)
    # Both at update 6, else a snapshot at each even one.
    train(hosts, "a", "out", ["checkpointing.save_steps=3"])
    assert len(writing) > 4 * 3
    assert not any(writing)


def test_a_damaged_snapshot_is_passed_over(hosts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(hosts, "ab", "out", last=8)
    for name in "ab":
        file = hosts / name / OPTIONS.job / name / "checkpoint-6" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    train(hosts, "ab", "out")
    told = capsys.readouterr().out
    assert told.count("warning: snapshot skipped: ") == 2
    assert "going on from a snapshot of update 4\n" in told


@pytest.mark.parametrize(
    ("saved", "damaged", "started"),
    [(7, False, 7), (7, True, 6), (5, False, 6)],
    ids=["later", "damaged", "earlier"],
)
def test_a_later_checkpoint_is_preferred_to_a_snapshot(
    hosts: Path, saved: int, damaged: bool, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets, place = [f"checkpointing.save_steps={saved}"], hosts.parent / "out" / f"checkpoint-{saved}"
    train(hosts, "ab", "out", sets, last=8)
    lines = len(read_metrics(hosts.parent / "out")[0])
    if damaged:
        (place / "model.safetensors").write_bytes(b"")
    told: list[str] = []
    monkeypatch.setattr(snapshots, "say", told.append)
    monkeypatch.setattr(output_dir, "say", told.append)
    read, verify = list[Path](), finding.verify
    monkeypatch.setattr(finding, "verify", lambda place, *rest: (read.append(place), verify(place, *rest)))
    found = train(hosts, "ab", "out", sets, AUTO, last=started + 2)
    assert [type(error) for error in found] == [Lost, Lost]
    assert lines == 7
    assert [line["step"] for line in read_metrics(hosts.parent / "out")[0]] == [*range(1, started + 2)]
    later = f"--resume auto: going on from {place}, which is later than the newest snapshot"
    assert told[-1] == (later if started == 7 else "going on from a snapshot of update 6")
    # It is large, and read once.
    assert read.count(place) == (saved == 7)
    # None that the run goes on from is set aside.
    assert place.is_dir()
    assert len([*place.parent.glob("*.before-resume-*[!l]")]) == damaged


def test_another_run_in_the_output_directory_is_left_alone(hosts: Path) -> None:
    train(hosts, "ab", "out", last=8)
    train(hosts, "d", "else", sets=["seed=5"], last=2)
    before = (hosts.parent / "else" / "spec.json").read_bytes()
    (refused,) = train(hosts, "b", "else")
    assert "holds another run" in str(refused)
    assert (hosts.parent / "else" / "spec.json").read_bytes() == before


def test_what_a_killed_job_has_left_is_deleted_a_day_later(hosts: Path) -> None:
    for name, hours in (("yesterday", 25), ("today", 23)):
        place = hosts / "a" / name / "a" / "checkpoint-1"
        place.mkdir(parents=True)
        for path in (place.parent, place.parent.parent):
            changed = path.stat().st_mtime - hours * 3600
            os.utime(path, (changed, changed))
    on_hosts("a", lambda ranks: Snapshots(OPTIONS, ranks))
    assert [path.name for path in (hosts / "a").iterdir()] == ["today"]


def test_where_memory_has_no_room_the_directory_for_temporary_files_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for place in (small, large):
        place.mkdir()
    monkeypatch.setattr(snapshot_places, "_places", lambda: [small / "own", large / "own"])
    free = {small: 10, large: 10**9}
    monkeypatch.setattr(snapshot_places.shutil, "disk_usage", lambda path: SimpleNamespace(free=free[path]))
    assert snapshot_places.roomy_root(10) == small / "own"
    assert snapshot_places.roomy_root(11) == large / "own"
    assert "has no room for 11 bytes" in capsys.readouterr().out
    monkeypatch.undo()
    given = tmp_path / "given"
    monkeypatch.setenv("HVDTRAIN_SNAPSHOT_DIR", str(given))
    with pytest.raises(CheckpointError, match=f"HVDTRAIN_SNAPSHOT_DIR {given}: no such directory"):
        snapshot_places.roomy_root(1)
    given.mkdir()
    place = snapshot_places.roomy_root(1)
    assert (place.parent, place.stat().st_mode & 0o777) == (given, 0o700)
    place.chmod(0o777)
    with pytest.raises(HvdtrainError, match=r"others can write to it; set HVDTRAIN_SNAPSHOT_DIR"):
        snapshot_places.roomy_root(1)


@pytest.mark.parametrize("kind", ["link", "open"])
def test_what_others_have_put_in_the_place_of_snapshots_is_neither_read_nor_deleted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HVDTRAIN_SNAPSHOT_DIR", str(tmp_path))
    root, theirs = tmp_path / f"hvdtrain-snapshots-{os.getuid()}", tmp_path / "theirs"
    for name in ("old", OPTIONS.job):
        (theirs / name / "x" / "checkpoint-999999").mkdir(parents=True)
        for path in (theirs / name / "x", theirs / name):
            os.utime(path, (0, 0))
    if kind == "link":
        root.symlink_to(theirs)
    else:
        theirs.rename(root)
        root.chmod(0o777)

    def look(ranks: Ranks) -> None:
        held = Snapshots(OPTIONS, ranks)
        assert held.newest() == (None, None)
        held.delete()

    on_hosts("a", look)
    assert all((root / name / "x" / "checkpoint-999999").is_dir() for name in ("old", OPTIONS.job))
    assert capsys.readouterr().out == ""
