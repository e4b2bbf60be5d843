"""An output directory holds one run, and one job at a time writes there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hvdtrain.core.checkpoints.finding import AUTO, LATEST_FILE, checkpoints_in
from hvdtrain.core.checkpoints.retention import Retention
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.paths import default_output_dir
from hvdtrain.core.run import output_dir
from hvdtrain.core.run.lock import LOCK_FILE, check_still_locked, locked
from hvdtrain.core.run.output_dir import (
    begin_run,
    check_begins_anew,
    check_output_dir,
    spec_text,
)
from hvdtrain.core.run.saving import _write_checkpoint
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
# Holds the lock of argv[1] until its input ends; a child of it, forked meanwhile, lives on.
HOLDER = """
import os, sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from hvdtrain.core.run.lock import locked
with locked(Path(sys.argv[1]), job=sys.argv[2]):
    if sys.argv[2] == "forks" and os.fork() == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.readline()
"""
# Locks the directory, and begins a run, where no file may grow beyond so many bytes.
FULL = """
import resource, signal, sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.lock import locked
from hvdtrain.core.run.output_dir import begin_run
from hvdtrain.core.spec.job_spec import load_spec
# Python would leave what it compiles cut off.
sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    with locked(Path(sys.argv[1])):
        begin_run(Path(sys.argv[1]), load_spec("bert"), SimpleNamespace(as_dict=dict), False)
except CheckpointError as error:
    print(error)
"""


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


@contextmanager
def hold(directory: Path, how: str = "") -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(directory), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            # One that is stopped would not end.
            holder.kill()


def test_a_second_job_is_told_who_writes_there(tmp_path: Path) -> None:
    with hold(tmp_path) as holder:
        told = f"another job is writing there .process {holder.pid} on host {socket.gethostname()}, since 20"
        with pytest.raises(CheckpointError, match=told), locked(tmp_path):
            pass
        holder.communicate("\n")
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert files(tmp_path) == set()


def test_the_lock_of_a_killed_job_is_free_though_a_worker_of_it_lives(tmp_path: Path) -> None:
    with hold(tmp_path, "forks") as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert files(tmp_path) == {LOCK_FILE}
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert files(tmp_path) == set()


def test_rank_0_of_a_job_that_was_started_again_takes_the_lock_from_a_frozen_one(tmp_path: Path) -> None:
    with hold(tmp_path, "elastic") as frozen:
        frozen.send_signal(signal.SIGSTOP)
        with (
            pytest.raises(CheckpointError, match="another job is writing there"),
            locked(tmp_path, job="other"),
        ):
            pass
        with locked(tmp_path, job="elastic"):
            check_still_locked(tmp_path)
            frozen.send_signal(signal.SIGCONT)
            frozen.communicate("\n")
            # That one has given back a lock which was its own no longer.
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert files(tmp_path) == set()


def test_a_rank_0_that_was_given_up_goes_no_further(tmp_path: Path) -> None:
    # Without a lock there is nothing to say.
    check_still_locked(tmp_path)
    with locked(tmp_path, job="elastic"):
        file = tmp_path / LOCK_FILE
        holder = json.loads(file.read_text())
        check_still_locked(tmp_path)
        file.unlink()
        with pytest.raises(CheckpointError, match=r"goes on elsewhere, or \.lock was deleted"):
            check_still_locked(tmp_path)
        for change in ({"pid": 1}, {"host": "elsewhere"}):
            file.write_text(json.dumps(holder | change))
            with pytest.raises(CheckpointError, match=r"this job goes on elsewhere .process"):
                check_still_locked(tmp_path)
        file.write_text("")
        with pytest.raises(CheckpointError, match=r"this job goes on elsewhere .it has just begun"):
            check_still_locked(tmp_path)
    # Nobody takes the lock of a job whose ranks are not started again.
    with locked(tmp_path / "plain"):
        (tmp_path / "plain" / LOCK_FILE).unlink()
        check_still_locked(tmp_path / "plain")


def test_looking_at_the_lock_does_not_give_it_back(tmp_path: Path) -> None:
    with locked(tmp_path, job="elastic"):
        check_still_locked(tmp_path)
        done = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path), "other"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert f"another job is writing there (process {os.getpid()} " in done.stderr
        assert not done.stdout
        check_still_locked(tmp_path)


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


@pytest.mark.parametrize("most", [0, 200])
def test_no_space_for_the_lock_or_the_spec_is_told_and_changes_nothing(tmp_path: Path, most: int) -> None:
    fill(tmp_path, "spec.json")
    command = [sys.executable, "-c", FULL, str(tmp_path), str(most)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"--output-dir {tmp_path}: cannot be written: File too large\n"
    assert files(tmp_path) == {"spec.json"}
    assert (tmp_path / "spec.json").read_text() == "spec.json"


def test_a_rank_0_that_was_replaced_while_it_wrote_deletes_nothing(tmp_path: Path) -> None:
    others = [tmp_path / f"checkpoint-{step}" for step in (10, 20)]
    for place in others:
        place.mkdir()

    def write() -> None:
        (tmp_path / LOCK_FILE).unlink()
        (tmp_path / LOCK_FILE).write_text("")

    with (
        locked(tmp_path, job="elastic"),
        pytest.raises(CheckpointError, match="this job goes on elsewhere"),
    ):
        _write_checkpoint(tmp_path / "checkpoint-5", write, Retention(limit=1))
    assert checkpoints_in(tmp_path) == others
    assert not (tmp_path / LATEST_FILE).exists()
