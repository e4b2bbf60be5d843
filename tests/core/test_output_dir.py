"""An output directory holds one run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hvdtrain.core.checkpoints.finding import AUTO
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.paths import default_output_dir
from hvdtrain.core.run import output_dir
from hvdtrain.core.run.lock import locked
from hvdtrain.core.run.output_dir import (
    begin_run,
    check_begins_anew,
    check_output_dir,
    spec_text,
)
from hvdtrain.core.spec.job_spec import load_spec

LEFT = (
    "spec.json",
    "plan.json",
    "metrics.jsonl",
    "metrics.before-resume-4.jsonl",
    "model/config.json",
    "initial/model.safetensors",
    "checkpoint-12/state.json",
    "checkpoint-12.before-resume-8/state.json",
    "tensorboard/events.out.tfevents.1.host",
)
OTHERS = (
    "notes.txt",
    "checkpoint-of-mine/weights",
    "models/other",
    # What `hvdtrain export` makes, and is making.
    "checkpoint-12-huggingface/config.json",
    ".checkpoint-12-keras.tmp-9/model.keras",
)


def fill(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("left", LEFT)
def test_whatever_a_run_has_left_is_another_run(tmp_path: Path, left: str) -> None:
    fill(tmp_path, left, *OTHERS)
    name = left.partition("/")[0]
    with pytest.raises(CheckpointError, match=rf"{name} is there.*--resume to go on.*--overwrite to delete"):
        check_output_dir(tmp_path, None, overwrite=False)
    with pytest.raises(CheckpointError, match=rf"{name} is there\) than that of --resume .*elsewhere"):
        check_output_dir(tmp_path, tmp_path / "elsewhere" / "checkpoint-4", overwrite=False)
    check_output_dir(tmp_path, tmp_path / "checkpoint-12", overwrite=False)
    # Of nobody's, as it is.
    with pytest.raises(CheckpointError, match=rf"deletes runs, and this is none: {name} is there"):
        check_output_dir(tmp_path, None, overwrite=True)
    assert files(tmp_path) == {left, *OTHERS}
    (tmp_path / "spec.json").write_text(spec_text(load_spec("bert")))
    check_output_dir(tmp_path, None, overwrite=True)
    check_output_dir(tmp_path, tmp_path / "elsewhere" / "checkpoint-4", overwrite=True)
    assert files(tmp_path) == {left, "spec.json", *OTHERS}


@pytest.mark.parametrize("spec", ['{"openapi": "3.1.0"}', '["model", "data"]', "{", "\ufffd"])
def test_a_project_is_no_run(tmp_path: Path, spec: str) -> None:
    fill(tmp_path, "model/__init__.py", "plan.json", "latest", "checkpoint-5/trainer_state.json")
    (tmp_path / "spec.json").write_text(spec)
    before = files(tmp_path)
    with pytest.raises(CheckpointError, match=r"deletes runs, and this is none: spec\.json is there"):
        check_output_dir(tmp_path, None, overwrite=True)
    assert files(tmp_path) == before


@pytest.mark.parametrize("place", ["checkpoint-5", "checkpoint-5.before-resume-4"])
@pytest.mark.parametrize(
    ("file", "record"),
    [
        ("state.json", {"step": 5, "windows": 5}),
        ("state.json", {"format": 2, "step": 5, "loop": "keras"}),
        ("manifest.json", {"format": 3, "step": 5, "blake2b": "damaged"}),
    ],
)
def test_a_checkpoint_alone_is_of_a_run(
    tmp_path: Path, place: str, file: str, record: dict[str, Any]
) -> None:
    fill(tmp_path, f"{place}/{file}")
    (tmp_path / place / file).write_text(json.dumps(record))
    check_output_dir(tmp_path, None, overwrite=True)


def test_what_is_no_runs_is_no_run(tmp_path: Path) -> None:
    fill(tmp_path, *OTHERS)
    check_output_dir(tmp_path, None, overwrite=False)
    check_output_dir(tmp_path / "new", Path("elsewhere/checkpoint-4"), overwrite=False)


def test_a_run_that_goes_on_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *LEFT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="--overwrite would delete --resume"):
        check_output_dir(tmp_path, Path("checkpoint-12"), overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_overwriting_deletes_the_run_alone(tmp_path: Path, overwrite: bool) -> None:
    fill(tmp_path, *LEFT, *OTHERS)
    plan: Any = SimpleNamespace(as_dict=lambda: {"size": 2})
    begin_run(tmp_path, load_spec("bert"), plan, overwrite)
    assert files(tmp_path) == {"spec.json", "plan.json", *OTHERS, *(() if overwrite else LEFT)}
    assert json.loads((tmp_path / "plan.json").read_text()) == {"size": 2}
    assert json.loads((tmp_path / "spec.json").read_text())["model"]["model_type"] == "bert"


def test_a_kill_while_a_run_is_deleted_leaves_no_checkpoint_without_its_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *LEFT, *OTHERS, "checkpoint-7/state.json", "restarts.jsonl")
    whole, gone = output_dir.remove, []

    def watched(path: Path) -> None:
        gone.append(path.name)
        whole(path)

    monkeypatch.setattr(output_dir, "remove", watched)
    plan: Any = SimpleNamespace(as_dict=dict)
    begin_run(tmp_path, load_spec("bert"), plan, overwrite=True)
    assert gone[-1] == "spec.json"
    others = [name for name in gone if name != "restarts.jsonl"]
    assert {name.partition(".")[0] for name in others[:3]} == {"checkpoint-7", "checkpoint-12"}


def test_auto_begins_anew_in_the_directory_of_its_own_run_alone(tmp_path: Path) -> None:
    spec, fill_in = load_spec("bert"), ("metrics.jsonl", *OTHERS)
    check_output_dir(tmp_path, AUTO, overwrite=False)
    check_begins_anew(tmp_path, spec)
    fill(tmp_path, *fill_in)
    check_output_dir(tmp_path, AUTO, overwrite=False)
    with pytest.raises(CheckpointError, match=r"holds another run .metrics.jsonl is there"):
        check_begins_anew(tmp_path, spec)
    (tmp_path / "spec.json").write_text(spec_text(spec))
    check_begins_anew(tmp_path, spec)
    with pytest.raises(CheckpointError, match=r"holds another run .spec.json is there"):
        check_begins_anew(tmp_path, load_spec("bert", ["seed=5"]))
    with pytest.raises(CheckpointError, match="--overwrite would delete --resume auto"):
        check_output_dir(tmp_path, AUTO, overwrite=True)
    assert files(tmp_path) == {"spec.json", *fill_in}


def test_two_specs_of_one_name_share_a_directory_and_two_frameworks_do_not() -> None:
    assert default_output_dir("mine/bert.yaml", "torch") == default_output_dir("bert", "torch")
    assert default_output_dir("bert", "torch") != default_output_dir("bert", "tensorflow")


def test_a_job_that_is_refused_leaves_no_directory_and_one_that_began_does(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "new"):
        raise KeyError
    assert not (tmp_path / "new").exists()
    with pytest.raises(KeyError), locked(tmp_path / "begun"):
        fill(tmp_path, "begun/spec.json")
        raise KeyError
    assert files(tmp_path) == {"begun/spec.json"}


def test_a_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    told = "file/out: cannot be written: Not a directory"
    with pytest.raises(CheckpointError, match=told), locked(tmp_path / "file" / "out"):
        pass
