"""Checkpoints of users' loops, by one process that stands for some ranks."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.listing import list_checkpoints
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE, check_checkpoint, load_state
from hvdtrain.core.compression import TopK
from hvdtrain.core.data.seeding import read_generators, write_generators
from hvdtrain.core.dropin.own_files import rank_file
from hvdtrain.core.dropin.resuming import compression_name, own_compression
from hvdtrain.core.dropin.saved import LoopCheckpoint, find_checkpoint
from hvdtrain.core.dropin.saving import LoopWriter
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.pruning import prune
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.world import World

RECORD = {"loop": "torch", "layout": None, "order": None}


def ranks(rank: int = 0, size: int = 1) -> Ranks:
    """Ranks of which the others say nothing."""
    world = World(rank, size, rank, size, 1)
    return Ranks(world, lambda a, _: a, lambda a, _: a, lambda data, _: [data] * size)


def writer(directory: Path, **options: Any) -> LoopWriter:
    return LoopWriter(directory, ranks(), "torch", {"torch": "1"}, options.pop("limit", None), **options)


def save(into: LoopWriter, step: int) -> None:
    weights = {"w": np.full(3, step, np.float32)}
    streams = {WEIGHTS_FILE: ArrayStream.of(weights), OPTIMIZER_FILE: ArrayStream.of({})}
    into.save(step, RECORD, streams, {"own": np.array([step])}, {"loss": float("nan")})


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
    streams = {WEIGHTS_FILE: ArrayStream.of({"w": np.zeros(1, np.complex128)})}
    into.save(2, RECORD, streams, {}, {})
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2: .* no complex128; earlier ones are as they were"
    ):
        into.wait()
    assert {path: path.read_bytes() for path in (tmp_path / "checkpoint-1").iterdir()} == whole
    assert not list(tmp_path.glob(".checkpoint*"))


def test_what_a_rank_cannot_write_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rank 0: own: safetensors has no complex128"):
        writer(tmp_path).save(1, RECORD, {}, {"own": np.zeros(1, np.complex128)}, {})
    assert not list(tmp_path.iterdir())


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
    checkpoint = LoopCheckpoint(tmp_path, {}, 3, ranks(0, size), {}, files)
    # Every rank has opened the files: none is told by another here.
    each = [
        own_compression(
            replace(checkpoint, ranks=_chief(rank, size)), [(TopK(ratio=0.1), {"residual": None})]
        )
        for rank in range(size)
    ]
    found = np.stack([state["residual"] for (state,) in each])
    np.testing.assert_allclose(found.sum(axis=0), [6.0, 60.0])
    expected = [[1, 10], [2, 20], [3, 30]] if size == 3 else [[6 / size, 60 / size]] * size
    np.testing.assert_allclose(found, expected)


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
