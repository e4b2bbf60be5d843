"""Damage to a checkpoint is found before anything of it is used, and the damaged file is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hvdtrain.cli import app
from hvdtrain.core.checkpoints.finding import AUTO, check_whole, left_behind, newest_whole
from hvdtrain.core.checkpoints.manifest import MANIFEST_FILE, SPEC_FILE, _sealed, read_manifest
from hvdtrain.core.data import Dataset
from hvdtrain.core.errors import CheckpointError, DamagedError
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from tests.core.older_formats import make_format_1, make_format_2
from tests.core.test_resume import train
from tests.jobs.runs import TINY, small_corpus

FILES = (
    "compression.safetensors",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "rank-0.safetensors",
    "sentence_bert_config.json",
    "spec.json",
    "state.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
OUTSIDE = ("", ".", "..", "../x", "/etc/hostname", "deep/config.json")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, Dataset]:
    sets = ["max_steps=8", "checkpointing.save_steps=4", "batch.per_device_train_batch_size=2"]
    corpus = small_corpus(tmp_path_factory.mktemp("corpus"))
    spec = load_spec("bert", [*TINY, *corpus, "model.dtype=float64", *sets])
    return spec, prepare_data(spec, print)


@pytest.fixture(scope="module")
def run_dir(job: tuple[JobSpec, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints 4 and 8."""
    folder = tmp_path_factory.mktemp("run")
    train(folder, *job)
    return folder


def flip(path: Path, at: float, bit: int) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        place = min(int(at * size), size - 1)
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))


def swap(path: Path, other: Path) -> None:
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def truncate(path: Path, at: float) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(min(int(at * size), size - 1))


POSITIONS = st.floats(0, 1)
DAMAGE: st.SearchStrategy[Callable[[Path], None]] = st.one_of(
    st.builds(lambda at, bit: lambda path: flip(path, at, bit), POSITIONS, st.integers(0, 7)),
    st.builds(lambda at: lambda path: truncate(path, at), POSITIONS),
    st.just(lambda path: path.write_bytes(b"")),
    st.just(lambda path: path.unlink()),
    st.just(lambda path: path.open("ab").write(b"\n")),
)


def test_what_a_checkpoint_holds(run_dir: Path) -> None:
    place = run_dir / "checkpoint-4"
    assert sorted(file.name for file in place.iterdir()) == list(FILES)
    manifest = check_whole(place)
    assert manifest is not None
    assert {*manifest.files} == {*FILES} - {MANIFEST_FILE}
    assert (manifest.step, manifest.framework, manifest.ranks) == (4, "torch", 1)
    assert manifest.metrics.keys() == {"loss"}
    assert manifest.spec == manifest.files[SPEC_FILE].blake2b


@given(file=st.sampled_from(FILES), damage=DAMAGE)
def test_any_damage_to_any_file_is_found_and_named_and_auto_takes_another(
    run_dir: Path, file: str, damage: Callable[[Path], None]
) -> None:
    with TemporaryDirectory() as folder:
        damage(copied(run_dir, Path(folder)) / file)
        check_refused(Path(folder), {file})


@given(files=st.lists(st.sampled_from(FILES), min_size=2, max_size=2, unique=True))
def test_two_files_that_have_changed_places_are_found_and_named(run_dir: Path, files: list[str]) -> None:
    with TemporaryDirectory() as folder:
        last = copied(run_dir, Path(folder))
        swap(*(last / file for file in files))
        check_refused(Path(folder), {*files})


@pytest.mark.parametrize("file", [MANIFEST_FILE, "state.json"])
def test_a_file_of_another_checkpoint_is_found(run_dir: Path, tmp_path: Path, file: str) -> None:
    shutil.copy(run_dir / "checkpoint-4" / file, copied(run_dir, tmp_path) / file)
    # With the other's manifest all files but the model's own are wrong.
    check_refused(tmp_path, {*FILES})


def copied(run_dir: Path, folder: Path) -> Path:
    """Copies of both checkpoints; the last one."""
    for name in ("checkpoint-4", "checkpoint-8"):
        shutil.copytree(run_dir / name, folder / name)
    return folder / "checkpoint-8"


def check_refused(folder: Path, names: set[str]) -> None:
    """Checkpoint 8 is refused by the name of one of these files, and `auto` takes checkpoint 4."""
    with pytest.raises(CheckpointError) as error:
        check_whole(folder / "checkpoint-8")
    assert any(str(folder / "checkpoint-8" / name) in str(error.value) for name in names)
    told: list[str] = []
    found = newest_whole(folder, told.append)
    assert found is not None
    assert found[0] == folder / "checkpoint-4"
    (line,) = told
    assert line.startswith("warning: --resume auto: skipped checkpoint-8, going on from ")
    assert f"{folder}/checkpoint-4: {folder}/checkpoint-8/" in line


@pytest.mark.parametrize("given_as", ["path", "auto"])
def test_nothing_of_a_damaged_checkpoint_is_used(
    job: tuple[JobSpec, Dataset],
    run_dir: Path,
    tmp_path: Path,
    given_as: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(run_dir / "checkpoint-4", tmp_path / "checkpoint-4")
    flip(tmp_path / "checkpoint-4" / "model.safetensors", 0.9, 3)
    if given_as == "auto":
        # What it cannot go on from is of another run, unless that had the same spec.
        with pytest.raises(CheckpointError, match=r"holds another run .checkpoint-4 is there"):
            train(tmp_path, *job, AUTO)
        shutil.copy(run_dir / "checkpoint-4" / SPEC_FILE, tmp_path)
        state, numbers = train(tmp_path, *job, AUTO)
        assert (state.step, numbers[0]) == (8, 1)
        assert "skipped checkpoint-4, starting from the beginning" in capsys.readouterr().out
    else:
        with pytest.raises(CheckpointError, match=r"--resume .*model\.safetensors: is damaged.*resume auto"):
            train(tmp_path, *job, tmp_path / "checkpoint-4")


def test_auto_goes_on_from_the_newest(
    job: tuple[JobSpec, Dataset], run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied(run_dir, tmp_path))
    state, numbers = train(tmp_path, *job, AUTO)
    assert (state.step, numbers[0]) == (8, 5)
    assert f"--resume auto: going on from {tmp_path}/checkpoint-4" in capsys.readouterr().out


def test_auto_takes_what_a_kill_between_two_renames_has_set_aside(run_dir: Path, tmp_path: Path) -> None:
    last = copied(run_dir, tmp_path)
    last.rename(tmp_path / ".checkpoint-8.before-a_bc0123")
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / ".checkpoint-8.tmp-77")
    # What it was about to replace is there.
    (tmp_path / ".checkpoint-4.before-abcd0123").mkdir()
    (tmp_path / ".checkpoint-4.before-abcd0123" / "part").write_text("older")
    found = newest_whole(tmp_path, print)
    assert found is not None
    assert found[0] == last
    assert [path.name for path in left_behind(tmp_path)] == [
        ".checkpoint-4.before-abcd0123",
        ".checkpoint-8.tmp-77",
    ]


def test_auto_starts_from_the_beginning_where_there_is_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    assert newest_whole(tmp_path / "none", told.append) is None
    assert told == [f"--resume auto: no checkpoint in {tmp_path}/none, starting from the beginning"]


def test_a_later_format_says_which_version_reads_it(run_dir: Path, tmp_path: Path) -> None:
    place = tmp_path / "checkpoint-8"
    shutil.copytree(run_dir / "checkpoint-8", place)
    manifest = read_manifest(place)
    assert manifest is not None
    (place / MANIFEST_FILE).write_text(replace(manifest, format=4).text())
    with pytest.raises(CheckpointError, match="has format 4, and this version of hvdtrain reads 1 to 3"):
        read_manifest(place)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shards": 2}, "is not what this version of hvdtrain reads .*shards.*it was saved by"),
        ({"step": None}, "is not what this version .*step"),
        ({"format": None}, "has format None"),
        ({"files": None}, "is not what this version .*files"),
        ({"files": []}, "is not what this version"),
        ({"files": {"config.json": {"size": 1}}}, "is not what this version .*blake2b"),
        ({"files": {"config.json": {"size": 1, "blake2b": "", "crc": 0}}}, "is not what this version .*crc"),
        *(({"files": {name: {"size": 0, "blake2b": ""}}}, f"names '{name}'") for name in OUTSIDE),
    ],
)
def test_a_sealed_manifest_of_other_fields_or_of_files_elsewhere_is_refused(
    run_dir: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    path = copied(run_dir, tmp_path) / MANIFEST_FILE
    record = {**json.loads(path.read_text()), **change}
    record = {name: value for name, value in record.items() if value is not None and name != "blake2b"}
    path.write_text(_sealed(record))
    with pytest.raises(CheckpointError, match=rf"checkpoint-8/manifest\.json: {told}") as error:
        read_manifest(path.parent)
    # Whoever wrote it knows what to do with it.
    assert not isinstance(error.value, DamagedError)
    check_refused(tmp_path, {MANIFEST_FILE})


def test_format_1_goes_on_and_says_that_it_cannot_be_verified(
    job: tuple[JobSpec, Dataset], run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied(run_dir, tmp_path))
    make_format_1(tmp_path / "checkpoint-4")
    state, numbers = train(tmp_path, *job, tmp_path / "checkpoint-4")
    assert (state.step, numbers[0]) == (8, 5)
    told = capsys.readouterr().out
    assert "checkpoint-4 has format 1, without a manifest: its files cannot be verified" in told
    assert "saved by an earlier version, not torch on 1: dropout is drawn from seed, rank and step" in told


def test_format_2_goes_on_with_its_generators(
    job: tuple[JobSpec, Dataset], run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(copied(run_dir, tmp_path))
    make_format_2(tmp_path / "checkpoint-4")
    state, numbers = train(tmp_path, *job, AUTO)
    assert (state.step, numbers[0]) == (8, 5)
    assert "dropout is drawn" not in capsys.readouterr().out
    # Each update adds to their state.
    for name in ("checkpoint-8/rank-0.safetensors", "checkpoint-8/optimizer.safetensors"):
        assert (tmp_path / name).read_bytes() == (run_dir / name).read_bytes()
    assert not (tmp_path / "checkpoint-8" / "generators.safetensors").exists()


def test_a_checkpoint_of_the_other_framework_says_that_dropout_starts_anew(
    job: tuple[JobSpec, Dataset], run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = shutil.copytree(run_dir / "checkpoint-4", tmp_path / "checkpoint-4")
    manifest = check_whole(place)
    assert manifest is not None
    train(tmp_path / "same", *job, place)
    assert "dropout is drawn" not in capsys.readouterr().out
    (place / MANIFEST_FILE).write_text(replace(manifest, framework="tensorflow").text())
    train(tmp_path / "other", *job, place)
    told = capsys.readouterr().out
    assert (
        "saved by tensorflow on 1 rank(s), not torch on 1: dropout is drawn from seed, rank and step" in told
    )


def test_the_command_lists_checkpoints_and_verifies_every_byte(run_dir: Path, tmp_path: Path) -> None:
    copied(run_dir, tmp_path)
    make_format_1(shutil.copytree(run_dir / "checkpoint-4", tmp_path / "checkpoint-2"))
    listed = invoke(0, str(tmp_path), "--json")
    assert [(each["step"], each["format"], each["state"]) for each in listed] == [
        (2, 1, "unverified"),
        (4, 3, "unverified"),
        (8, 3, "unverified"),
    ]
    assert listed[0]["loss"] is None
    assert all(each["loss"] > 0 for each in listed[1:])
    assert [each["state"] for each in invoke(0, str(tmp_path), "--verify", "--json")] == [
        "unverified",
        "whole",
        "whole",
    ]
    flip(tmp_path / "checkpoint-4" / "optimizer.safetensors", 0.5, 0)
    # Of the same size: only the bytes tell.
    assert [each["state"] for each in invoke(0, str(tmp_path), "--json")] == ["unverified"] * 3
    found = invoke(1, str(tmp_path), "--verify", "--json")
    assert [each["state"] for each in found] == ["unverified", "torn", "whole"]
    assert "checkpoint-4/optimizer.safetensors: is damaged" in found[1]["problem"]
    (tmp_path / "checkpoint-8" / "model.safetensors").unlink()
    table = CliRunner().invoke(app, ["checkpoints", str(tmp_path)])
    assert table.exit_code == 0
    for expected in ("step", "unverified", "torn", "torch", "model.safetensors: cannot be read"):
        assert expected in table.output


def invoke(status: int, *arguments: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["checkpoints", *arguments])
    assert done.exit_code == status, done.output
    found: list[dict[str, Any]] = json.loads(done.output)
    return found
