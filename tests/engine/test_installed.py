"""The installed Horovod works: both frameworks, under Gloo and under MPI, in real launches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.engine.support import run

TORCH = """
import sys
import torch, horovod.torch as hvd
hvd.init()
mine = torch.arange(5, dtype=torch.float64) + hvd.rank()
total = hvd.allreduce(mine, op=hvd.Sum)
part = hvd.reducescatter(torch.ones(4) * (hvd.rank() + 1), op=hvd.Sum)
open(f"{sys.argv[1]}/{hvd.rank()}", "w").write(repr([hvd.size(), total.tolist(), part.tolist()]))
"""
TENSORFLOW = """
import sys
import tensorflow as tf, horovod.tensorflow as hvd
hvd.init()
mine = tf.range(5, dtype=tf.float64) + hvd.rank()
total = hvd.allreduce(mine, op=hvd.Sum)
part = hvd.reducescatter(tf.ones(4) * (hvd.rank() + 1), op=hvd.Sum)
open(f"{sys.argv[1]}/{hvd.rank()}", "w").write(
    repr([hvd.size(), total.numpy().tolist(), part.numpy().tolist()]))
"""
LAUNCHERS = {
    "gloo": ("horovodrun", "-np", "2", "--gloo"),
    "mpi": ("mpirun", "--allow-run-as-root", "--oversubscribe", "-np", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS.values(), ids=LAUNCHERS)
@pytest.mark.parametrize("script", [TORCH, TENSORFLOW], ids=["torch", "tensorflow"])
def test_two_ranks_reduce(script: str, launcher: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(script)
    env = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    run(*launcher, sys.executable, "job.py", str(tmp_path), cwd=tmp_path, **env)
    for rank in range(2):
        answer = json.loads((tmp_path / str(rank)).read_text())
        assert answer == [2, [1.0, 3.0, 5.0, 7.0, 9.0], [3.0, 3.0]]


@pytest.mark.slow
def test_check_build_lists_what_was_built(tmp_path: Path) -> None:
    said = run("horovodrun", "--check-build", cwd=tmp_path).stdout
    for feature in ("TensorFlow", "PyTorch", "MPI", "Gloo"):
        assert f"[X] {feature}" in said
