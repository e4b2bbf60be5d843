"""Checkpoints of users' loops, by one process that stands for some ranks."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.listing import list_checkpoints
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.rank_files import rank_file
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE, check_checkpoint, load_state
from hvdtrain.core.compression import TopK
from hvdtrain.core.data.seeding import read_generators, write_generators
from hvdtrain.core.dropin.resuming import check_fits, check_objects, compression_name, restore_compression
from hvdtrain.core.dropin.saved import LoopCheckpoint, find_checkpoint
from hvdtrain.core.dropin.saving import LoopWriter, Taken
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.pruning import prune
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.world import World

RECORD = {"loop": "torch", "layout": None, "order": None}
UNKNOWN = np.zeros(1, np.complex128)


def ranks(rank: int = 0, size: int = 1) -> Ranks:
    """Ranks of which the others say nothing."""
    world = World(rank, size, rank, size, 1)
    return Ranks(world, lambda a, _: a, lambda a, _: a, lambda data, _: [data] * size)


def on_each(size: int, act: Callable[[Ranks], Any]) -> list[Any]:
    """What each of so many ranks returns or raises; a rank that waits for one that has gone raises, too."""
    # Ranks of a job would wait for ever.
    met = threading.Barrier(size, timeout=20)
    board: list[Any] = [None] * size
    found: list[Any] = [None] * size

    def exchange(rank: int, value: Any) -> list[Any]:
        board[rank] = value
        met.wait()
        every = [*board]
        met.wait()
        return every

    def run(rank: int) -> None:
        each = Ranks(
            World(rank, size, rank, size, 1),
            lambda array, _: sum(exchange(rank, array)),
            lambda array, _: exchange(rank, array)[0],
            lambda data, _: exchange(rank, data),
        )
        try:
            found[rank] = act(each)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def writer(directory: Path, among: Ranks | None = None, **options: Any) -> LoopWriter:
    limit = options.pop("limit", None)
    return LoopWriter(directory, among or ranks(), "torch", {"torch": "1"}, limit, **options)


def save(into: LoopWriter, step: int, array: np.ndarray | None = None) -> None:
    def take() -> Taken:
        weights = {"w": np.full(3, step, np.float32) if array is None else array}
        return RECORD, {WEIGHTS_FILE: ArrayStream.of(weights), OPTIMIZER_FILE: ArrayStream.of({})}

    into.save(step, take, {"own": np.array([step])}, {"loss": float("nan")})


def test_saved_and_found(tmp_path: Path) -> None:
    into = writer(tmp_path / "new", limit=2)
    into.begin()
    for step in (1, 2, 30):
        save(into, step)
    into.wait()
    listed = list_checkpoints(tmp_path / "new", every_byte=True)
    assert [(each.step, each.state, each.loss) for each in listed] == [
        (2, "whole", None),
        (30, "whole", None),
    ]
    found = find_checkpoint(ranks(), tmp_path / "new", "auto", "torch")
    assert found is not None
    assert found.record["step"] == 30
    np.testing.assert_array_equal(found.read(WEIGHTS_FILE, "w"), [30, 30, 30])
    np.testing.assert_array_equal(found.mine("own"), [30])
    assert find_checkpoint(ranks(), tmp_path / "other", "auto", "torch") is None
    with pytest.raises(CheckpointError, match=r"was saved by hvdtrain\.torch, and hvdtrain\.keras cannot"):
        find_checkpoint(ranks(), tmp_path, tmp_path / "new" / "checkpoint-2", "keras")
    for check in (check_checkpoint, load_state):
        with pytest.raises(CheckpointError, match=r"saved by a loop of your own \(hvdtrain\.torch\)"):
            check(tmp_path / "new" / "checkpoint-2")


def test_an_error_of_the_background_is_told_by_the_next_call(tmp_path: Path) -> None:
    into = writer(tmp_path)
    save(into, 1)
    into.wait()
    whole = {path: path.read_bytes() for path in (tmp_path / "checkpoint-1").iterdir()}
    save(into, 2, UNKNOWN)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2: .* no complex128; what was there before is as it was"
    ):
        into.wait()
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoint-1").iterdir()} == whole
    assert not list(tmp_path.glob(".checkpoint*"))


def test_what_a_rank_cannot_write_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rank 0: own: safetensors has no complex128"):
        writer(tmp_path).save(1, lambda: (RECORD, {}), {"own": UNKNOWN}, {})
    assert not list(tmp_path.iterdir())


def test_an_error_of_rank_0_is_raised_on_every_rank(tmp_path: Path) -> None:
    """Else the others would wait for it in their next collective."""

    def refuse() -> Taken:
        raise CheckpointError("extra.what: a function cannot be saved")

    def loop(among: Ranks) -> list[str]:
        into, said = writer(tmp_path, among), []
        for act in (
            lambda: save(into, 1, UNKNOWN),
            lambda: save(into, 2),
            lambda: save(into, 3, UNKNOWN),
            into.wait,
            lambda: into.save(4, refuse, {}, {}),
            lambda: save(into, 5),
            into.wait,
        ):
            try:
                act()
                said.append("")
            except CheckpointError as error:
                said.append(str(error))
        return said

    first, second = on_each(2, loop)
    assert first == second
    assert ["no complex128" in each for each in first] == [False, True, False, True, False, False, False]
    assert first[4] == "extra.what: a function cannot be saved"
    assert first[5:] == ["", ""]
    assert [each.step for each in list_checkpoints(tmp_path, every_byte=True)] == [5]


@pytest.mark.parametrize(
    ("step", "metrics", "said"),
    [
        (-1, {}, "expected a step from 0"),
        (1.5, {}, "expected a step from 0"),
        ("seven", {}, "expected a step from 0"),
        (1, [0.5], "expected a step from 0, and metrics such as"),
        (1, {"loss": "low"}, "metrics: loss: expected a number (found a str)"),
        (1, {"loss": np.zeros(2)}, "metrics: loss: expected a number (found a ndarray)"),
    ],
)
def test_steps_and_metrics_that_are_no_numbers_are_told_on_every_rank(
    tmp_path: Path, step: Any, metrics: Any, said: str
) -> None:
    def loop(among: Ranks) -> None:
        into = writer(tmp_path, among)
        # Rank 0's alone are saved.
        into.save(step, lambda: (RECORD, {}), {}, metrics if among.is_chief else {})

    for error in on_each(2, loop):
        assert isinstance(error, CheckpointError)
        assert said in str(error)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path: Path) -> None:
    into, step, metrics = writer(tmp_path), np.int64(7), {"loss": np.float32(0.5), "none": None}
    into.save(cast(int, step), lambda: (RECORD, {}), {}, cast(Any, metrics))
    into.wait()
    assert [(each.step, each.loss) for each in list_checkpoints(tmp_path, every_byte=True)] == [(7, 0.5)]


def test_an_old_checkpoint_that_cannot_be_deleted_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On NFS a file that is open somewhere leaves something in its directory."""
    plain = shutil.rmtree

    def busy(path: Any, ignore_errors: bool = False, **options: Any) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        plain(path, ignore_errors, **options)

    into = writer(tmp_path, limit=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        for step in (1, 2, 3):
            save(into, step)
        into.wait()
    assert "warning: " in (said := capsys.readouterr().err)
    assert "checkpoint-1: cannot be deleted" in said
    # Nothing of them is gone, so they keep their names.
    assert [each.step for each in list_checkpoints(tmp_path, every_byte=True)] == [1, 2, 3]
    # The next save tries again.
    save(into, 4)
    into.wait()
    assert [each.step for each in list_checkpoints(tmp_path, every_byte=True)] == [4]
    assert not list(tmp_path.glob(".checkpoint-*"))


def test_a_later_checkpoint_that_is_there_is_not_passed_over(tmp_path: Path) -> None:
    into = writer(tmp_path)
    for step in (5, 9):
        save(into, step)
    into.wait()
    with pytest.raises(CheckpointError, match="checkpoint-6: checkpoint-9 is there already"):
        save(writer(tmp_path), 6)
    # What goes on from an earlier one sets it aside.
    again = writer(tmp_path, goes_on_from=5)
    for step in (6, 9):
        save(again, step)
    again.wait()
    assert [each.step for each in list_checkpoints(tmp_path, every_byte=True)] == [5, 6, 9]
    assert (tmp_path / "checkpoint-9.before-resume-5").is_dir()
    # A checkpoint of the same step is replaced.
    save(into, 9)
    into.wait()
    over = writer(tmp_path, overwrite=True)
    for step in (2, 4):
        save(over, step)
    over.wait()
    assert [each.step for each in list_checkpoints(tmp_path, every_byte=True)] == [2, 4]


def test_another_programs_checkpoints_are_neither_deleted_nor_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {tmp_path / f"checkpoint-{step}" / "trainer_state.json": step for step in (3, 900)}
    for path, step in theirs.items():
        path.parent.mkdir()
        path.write_text(f'{{"global_step": {step}}}')
    into = writer(tmp_path)
    for step in (1, 2):
        save(into, step)
    into.wait()
    (tmp_path / "checkpoint-2" / WEIGHTS_FILE).unlink()
    over = writer(tmp_path, overwrite=True)
    save(over, 4)
    over.wait()
    said = capsys.readouterr().out
    assert "hvdtrain: checkpoint-3 is not deleted: " in said
    assert "hvdtrain: checkpoint-900 is not deleted: " in said
    # They are nobody's newer ones.
    save(over, 5)
    with pytest.raises(CheckpointError, match="checkpoint-900: is there already, and was not saved by hvd"):
        save(over, 900)
    assert [path.read_text() for path in theirs] == [f'{{"global_step": {step}}}' for step in (3, 900)]
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {
        f"checkpoint-{step}" for step in (3, 4, 5, 900)
    }


def test_what_a_killed_job_left_is_deleted(tmp_path: Path) -> None:
    left = tmp_path / ".checkpoint-3.parts-abc"
    left.mkdir()
    (left / rank_file(0)).write_bytes(b"half")
    into = writer(tmp_path)
    save(into, 4)
    into.wait()
    assert not left.exists()


def test_what_a_killed_job_has_set_aside_is_a_later_checkpoint(tmp_path: Path) -> None:
    into = writer(tmp_path)
    for step in (5, 9):
        save(into, step)
    into.wait()
    # As where names cannot be exchanged.
    (tmp_path / "checkpoint-9").rename(tmp_path / ".checkpoint-9.before-abcd0123")
    with pytest.raises(CheckpointError, match="checkpoint-6: checkpoint-9 is there already"):
        save(writer(tmp_path), 6)
    assert [each.step for each in list_checkpoints(tmp_path, every_byte=True)] == [5, 9]


def test_prune_knows_them(tmp_path: Path) -> None:
    into = writer(tmp_path)
    for step in (1, 2, 3):
        save(into, step)
    into.wait()
    (tmp_path / ".checkpoint-3.parts-abc").mkdir()
    (tmp_path / "checkpoint-2" / WEIGHTS_FILE).unlink()
    prune(tmp_path, None, print)
    assert [each.step for each in list_checkpoints(tmp_path, every_byte=True)] == [1, 3]
    prune(tmp_path, 1, print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "latest"]


def test_two_jobs_cannot_write_into_one_directory(tmp_path: Path) -> None:
    first = writer(tmp_path)
    first.begin()
    if not (child := os.fork()):
        try:
            writer(tmp_path).begin()
        except CheckpointError as error:
            os._exit(0 if "another job is writing there" in str(error) else 2)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_residuals_keep_their_sum_on_any_number_of_ranks(tmp_path: Path, size: int) -> None:
    name = compression_name(0, "residual")
    files = {rank_file(rank): {name: np.array([1.0, 10.0]) * (rank + 1)} for rank in range(3)}
    shapes = {rank_file(0): {name: (2,)}}
    checkpoint = LoopCheckpoint(tmp_path, {}, 3, ranks(0, size), shapes, files)
    each = [Kept() for _ in range(size)]
    for rank, kept in enumerate(each):
        # Every rank has opened the files: none is told by another here.
        restore_compression(replace(checkpoint, ranks=_chief(rank, size)), kept)
    found = np.stack([kept.written[0]["residual"] for kept in each])
    np.testing.assert_allclose(found.sum(axis=0), [6.0, 60.0])
    expected = [[1, 10], [2, 20], [3, 30]] if size == 3 else [[6 / size, 60 / size]] * size
    np.testing.assert_allclose(found, expected)


@dataclass
class Kept:
    """What a framework keeps of one bucket's compression."""

    states: Any = ((TopK(ratio=0.1), {"residual": np.zeros(2)}),)
    written: list[Any] = field(default_factory=list)

    def write(self, states: Any) -> None:
        self.written = states


def test_compression_that_is_turned_on_starts_without_residuals(tmp_path: Path) -> None:
    shapes = {WEIGHTS_FILE: {"w": (3,)}, rank_file(0): {"generator.global.numpy": (625,)}}
    checkpoint = LoopCheckpoint(tmp_path, RECORD, 1, ranks(), shapes, {rank_file(0): {}})
    check_fits(checkpoint, {"w": (3,)}, "topk", None)
    restore_compression(checkpoint, kept := Kept())
    assert not kept.written


def test_what_was_saved_and_is_not_there_any_more_is_not_lost_in_silence(tmp_path: Path) -> None:
    order = {"samples": 8, "seed": 1, "shuffle": True}
    record = RECORD | {"objects": {"loader": {}, "scaler": {}}, "order": order}
    shapes: dict[str, Any] = {WEIGHTS_FILE: {}, rank_file(0): {}}
    checkpoint = LoopCheckpoint(tmp_path, record, 1, ranks(), shapes, {})
    check_objects(checkpoint, ["scaler", "loader"])
    with pytest.raises(
        CheckpointError, match=r"was saved with loader, whose state .* give Checkpoint loader"
    ):
        check_objects(checkpoint, ["scaler"])
    with pytest.raises(CheckpointError, match="was saved without scheduler"):
        check_objects(checkpoint, ["scaler", "loader", "scheduler"])
    check_fits(checkpoint, {}, None, order)
    for other in (None, order | {"seed": 2}):
        with pytest.raises(CheckpointError, match=r"other data .*seed 1.*; now .* repeated or left out"):
            check_fits(checkpoint, {}, None, other)


def _chief(rank: int, size: int) -> Ranks:
    """A rank that reads for itself."""

    class Reading(Ranks):
        @property
        def is_chief(self) -> bool:
            return True

    found = ranks(rank, size)
    return Reading(found.world, found.sum_arrays, found.broadcast_array, found.gather_bytes)


def test_global_generators_come_back() -> None:
    import random

    random.gauss(0.0, 1.0)
    np.random.normal()
    states = read_generators()
    drawn = [random.gauss(0.0, 1.0), random.random(), np.random.normal(), np.random.random()]
    write_generators(states)
    assert [random.gauss(0.0, 1.0), random.random(), np.random.normal(), np.random.random()] == drawn
