"""Which checkpoints are kept: against a reading of the rules that deletes one at a time."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.checkpoints.manifest import FORMAT, MANIFEST_FILE, STATE_FILE, FileRecord, Manifest
from hvdtrain.core.checkpoints.retention import Retention, delete, not_kept, rotate
from hvdtrain.core.errors import CheckpointError

VALUES = st.one_of(st.none(), st.just(math.nan), st.integers(-3, 3).map(float))
FOUND = st.dictionaries(st.integers(1, 30), st.builds(lambda value: {"eval_loss": value}, VALUES), max_size=9)
RETENTIONS = st.builds(
    Retention, st.none() | st.integers(1, 10), st.none() | st.just("eval_loss"), st.booleans()
)


@given(FOUND, RETENTIONS, st.booleans())
def test_the_best_is_the_earliest_of_those_that_no_other_beats(
    found: dict[int, dict[str, float]], retention: Retention, extra: bool
) -> None:
    best = retention.best({step: metrics | {"loss": -9.0} for step, metrics in found.items()})
    sign = -1.0 if retention.greater_is_better else 1.0
    numbers = {
        step: sign * m["eval_loss"]
        for step, m in found.items()
        if m["eval_loss"] is not None and not math.isnan(m["eval_loss"])
    }
    if retention.metric is None or not numbers:
        assert best is None
        return
    assert best is not None
    assert all(numbers[best] < numbers[step] for step in numbers if step < best)
    assert all(numbers[best] <= numbers[step] for step in numbers if step > best)


@given(FOUND, RETENTIONS)
def test_as_many_are_kept_as_may_be_and_the_newest_and_the_best_always(
    found: dict[int, dict[str, float]], retention: Retention
) -> None:
    gone = retention.surplus(found)
    kept = found.keys() - set(gone)
    assert len(gone) == len(set(gone))
    if retention.limit is None or not found:
        assert not gone
        return
    best = retention.best(found)
    needed = {max(found), best} - {None}
    assert needed <= kept
    assert len(kept) == min(len(found), max(retention.limit, len(needed)))
    # Nothing that goes is newer than something that stays for its age alone.
    assert not gone or max(gone) < min(kept - {best}, default=31)
    assert gone == sorted(gone)


@given(FOUND, RETENTIONS, st.integers(1, 30))
def test_what_is_later_than_the_newest_is_of_another_process_and_changes_nothing(
    found: dict[int, dict[str, float]], retention: Retention, newest: int
) -> None:
    own = {step: metrics for step, metrics in found.items() if step <= newest}
    assert retention.surplus(found, newest) == retention.surplus(own, newest)


@given(FOUND, RETENTIONS)
def test_one_after_the_other_and_all_at_once_keep_the_same(
    found: dict[int, dict[str, float]], retention: Retention
) -> None:
    """A run that rotates after each save ends with what one that never did would keep, but for the best."""
    plain = Retention(retention.limit)
    held: dict[int, dict[str, float]] = {}
    for step in sorted(found):
        held[step] = found[step]
        for gone in plain.surplus(held, step):
            del held[gone]
    assert held.keys() == found.keys() - set(plain.surplus(found))
    # The best of all is never lost on the way, since it is the best of those that are there.
    held = {}
    for step in sorted(found):
        held[step] = found[step]
        for gone in retention.surplus(held, step):
            del held[gone]
    assert retention.best(found) in held or retention.best(found) is None


def write(output_dir: Path, step: int, version: int = FORMAT) -> Path:
    """A checkpoint whose manifest fits it."""
    place = output_dir / f"checkpoint-{step}"
    place.mkdir(parents=True)
    content = {STATE_FILE: json.dumps({"format": version, "step": step}).encode(), "weights": bytes(100)}
    for name, data in content.items():
        (place / name).write_bytes(data)
    records = {name: FileRecord.of(data) for name, data in content.items()}
    manifest = Manifest(version, step, "2026-01-01T00:00:00+00:00", "torch", 1, {}, "", {}, records)
    (place / MANIFEST_FILE).write_text(manifest.text())
    return place


def there(output_dir: Path) -> set[str]:
    return {path.name for path in output_dir.iterdir()}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("file", [MANIFEST_FILE, "weights"])
def test_what_cannot_be_read_is_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, file: str
) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    # The bytes of a manifest are read, of other files the sizes.
    name = "read_bytes" if file == MANIFEST_FILE else "stat"
    whole = getattr(Path, name)

    def failing(path: Path, **options: Any) -> Any:
        if path.name == file:
            raise OSError(code, os.strerror(code))
        return whole(path, **options)

    before = there(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, failing)
        rotate(tmp_path, Retention(1), 3)
    assert there(tmp_path) == before
    rotate(tmp_path, Retention(1), 3)
    assert there(tmp_path) == {"checkpoint-3"}


def test_of_others_and_of_later_versions_nothing_is_deleted(tmp_path: Path) -> None:
    write(tmp_path, 1, FORMAT + 1)
    # As a later version may have them: with a manifest of another kind, or none.
    (write(tmp_path, 2, FORMAT + 1) / MANIFEST_FILE).unlink()
    (write(tmp_path, 3, FORMAT + 1) / MANIFEST_FILE).write_text("{}")
    for step, file in ((4, "trainer_state.json"), (5, MANIFEST_FILE)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / file).write_text("{}")
    foreign = {f"checkpoint-{step}" for step in range(1, 6)}
    for step in (6, 7, 8):
        write(tmp_path, step)
    left: dict[str, str] = {}
    gone = not_kept(tmp_path, Retention(1), skip=lambda path, error: left.update({path.name: str(error)}))
    assert {path.name for path in gone} == {"checkpoint-6", "checkpoint-7"}
    assert left.keys() == foreign
    assert "has format 4, and this version of hvdtrain reads 1 to 3" in left["checkpoint-1"]
    rotate(tmp_path, Retention(1), 8)
    assert there(tmp_path) == {*foreign, "checkpoint-8"}


@pytest.mark.parametrize("file", [MANIFEST_FILE, STATE_FILE, "weights"])
@pytest.mark.parametrize("content", [None, b"", b"?" * 100])
def test_what_is_damaged_goes_first_but_the_newest_stays(
    tmp_path: Path, file: str, content: bytes | None
) -> None:
    for step in (1, 2, 3):
        place = write(tmp_path, step)
        if step != 1:
            (place / file).unlink() if content is None else (place / file).write_bytes(content)
    # Of the same size: every byte tells.
    gone = not_kept(tmp_path, Retention(2), 3, every_byte=True)
    assert gone == [tmp_path / "checkpoint-2"]


def test_what_cannot_be_deleted_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(path: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def half(path: Path) -> None:
        (path / "weights").unlink()
        refusing(path)

    place = write(tmp_path, 1)
    for remove, left in ((refusing, {"checkpoint-1"}), (half, {f".checkpoint-1.tmp-{os.getpid()}"})):
        monkeypatch.setattr("hvdtrain.core.checkpoints.retention.remove", remove)
        with pytest.raises(CheckpointError, match="checkpoint-1: cannot be deleted: Too many open files"):
            delete(place)
        assert there(tmp_path) == left
