"""A process that notices the end of the one that started it, and is not deceived."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = str(Path(__file__).parents[2])
HANG_S = 60.0
# It has looked a few times at its parent and its outputs before it says so.
ORPHAN = """
import pathlib, time
from hvdtrain.core.process import orphans
orphans._LOOK_MS = 10
orphans.end_with_launcher()
pathlib.Path("started").touch()
while not pathlib.Path("changed").exists(): time.sleep(0.01)
time.sleep(0.5)
pathlib.Path("alive").touch()
time.sleep(1000)
"""


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + HANG_S
    while not file.exists():
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.02)


def start(folder: Path, shell: str = 'exec "$@"', **outputs: int) -> subprocess.Popen[bytes]:
    """The program under a shell, `exec` or not; other outputs than pipes by name."""
    process = subprocess.Popen(
        ["sh", "-c", shell, "sh", sys.executable, "-c", ORPHAN],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **outputs},
    )
    wait_for(folder / "started")
    return process


def test_it_ends_with_its_parent_when_its_outputs_are_files(tmp_path: Path) -> None:
    parent = start(tmp_path, '"$@"; true', stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (child,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    psutil.wait_procs([child], timeout=HANG_S)
    assert not child.is_running()
    assert not (tmp_path / "alive").exists()


def test_it_ends_when_nobody_reads_either_output(tmp_path: Path) -> None:
    process = start(tmp_path)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(HANG_S) == 1


@pytest.mark.parametrize("left", ["stdout", "stderr"])
def test_one_output_without_a_reader_ends_nothing(left: str, tmp_path: Path) -> None:
    process = start(tmp_path)
    getattr(process, {"stdout": "stderr", "stderr": "stdout"}[left]).close()
    (tmp_path / "changed").touch()
    wait_for(tmp_path / "alive")
    process.kill()
    process.communicate()


def test_outputs_that_were_closed_from_the_start_end_nothing(tmp_path: Path) -> None:
    process = start(tmp_path, 'exec "$@" >&- 2>&-')
    (tmp_path / "changed").touch()
    wait_for(tmp_path / "alive")
    process.kill()
    process.communicate()


@pytest.mark.parametrize("parent", ["os.getppid()", "os.getppid() + 1"])
def test_a_parent_that_has_ended_already_is_noticed(parent: str) -> None:
    script = f"import os; from hvdtrain.launch.processes import end_with_parent; end_with_parent({parent})"
    status = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode
    assert status == (0 if parent == "os.getppid()" else -signal.SIGKILL)
