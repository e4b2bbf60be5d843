"""A disk that is full, or a directory that is read-only, in the middle of a run: one message and no loss."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.core.checkpoints.finding import check_whole, left_behind
from tests.core.test_saves import kept
from tests.jobs.runs import ROOT, TINY, small_corpus

# From update 5 on, when checkpoint 4 is on disk, no file grows beyond a limit, as on a full disk: another
# limit for each file that is to be the first that does not fit.
PROGRAM = """
import os, resource, signal, sys, threading
# What it compiles would be cut off.
sys.dont_write_bytecode = True
from pathlib import Path
from hvdtrain.core.process.ending import ends_the_job
from tests.core.test_going_on import Counting, job
from tests.jobs.preempted import wait_for

where, out, sets = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
update = Counting.update

def spoil():
    # Checkpoint 4 is complete when nobody writes any more.
    wait_for(lambda: all(thread.name != "checkpoint-writer" for thread in threading.enumerate()))
    assert (out / "latest").read_text() == "checkpoint-4\\n"
    if where == "read-only":
        out.chmod(0o555)
        if os.geteuid() == 0:
            # Root may write anywhere.
            os.seteuid(65534)
        return
    events = next((out / "tensorboard").iterdir())
    sizes = {"metrics": (out / "metrics.jsonl").stat().st_size, "tensorboard": events.stat().st_size}
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    most = sizes.get(where, 50_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

def spoilt(self, *arguments):
    if arguments[4] == 5:
        spoil()
    return update(self, *arguments)

Counting.update = spoilt
with ends_the_job():
    job(out, sets)
"""


@pytest.mark.parametrize(
    ("where", "in_background", "told"),
    [
        ("metrics", True, "out/metrics.jsonl: cannot be written: File too large; free some space"),
        ("tensorboard", True, "cannot be written: File too large; free some space"),
        ("checkpoint", True, "out/checkpoint-6: the model could not be saved: "),
        ("checkpoint", False, "out/checkpoint-6: the model could not be saved: "),
        ("model", True, "out/model: the model could not be saved: "),
        ("read-only", True, "out/checkpoint-6: the model could not be saved: "),
    ],
)
def test_one_message_ends_the_run_and_its_checkpoints_are_as_they_were(
    tmp_path: Path, where: str, in_background: bool, told: str
) -> None:
    out, steps = tmp_path / "out", 4 if where == "model" else 2
    sets = [
        *TINY,
        *small_corpus(tmp_path),
        "model.dtype=float64",
        "batch={per_device_train_batch_size: 2}",
        "max_steps=6" if where == "model" else "max_steps=200",
        f"checkpointing={{save_steps: {steps}, async_save: {str(in_background).lower()}}}",
        "logging={progress_bar: false, tensorboard: true}",
    ]
    command = [sys.executable, "-c", PROGRAM, where, str(out), *sets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("[rank 0] error: ")
    assert told in line
    out.chmod(0o755)
    assert kept(out) == {*range(steps, 5, steps)}
    for step in kept(out):
        # Of every byte.
        assert check_whole(out / f"checkpoint-{step}")
    assert (out / "latest").read_text() == "checkpoint-4\n"
    assert not (out / "model").exists()
    assert not left_behind(out)
