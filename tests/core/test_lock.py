"""One job at a time writes in an output directory."""

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

import pytest

from hvdtrain.core.checkpoints.finding import LATEST_FILE, checkpoints_in
from hvdtrain.core.checkpoints.retention import Retention
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.lock import LOCK_FILE, check_still_locked, locked
from hvdtrain.core.run.saving import _write_checkpoint
from tests.core.test_output_dir import files, fill

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
