"""A CUDA + NCCL Horovod compiles against a CUDA torch; needs nvcc and a network, and no GPU."""

from __future__ import annotations

import json
import os
import shutil
import sys
import venv
from pathlib import Path

import pytest

from tests.engine.support import REPOSITORY, run
from tests.engine.test_installed import TORCH

# Its wheel brings CUDA 13.0's libraries and NCCL along.
CUDA_TORCH = "torch==2.11.0"


@pytest.mark.slow
def test_a_cuda_build_has_nccl_and_runs_on_cpu_tensors(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / "bin"
    env = {"HVDTRAIN_CACHE_DIR": str(tmp_path / "cache"), "PATH": f"{binaries}{os.pathsep}{_path()}"}
    run(binaries / "pip", "install", "-q", CUDA_TORCH, _project(tmp_path / "project"), cwd=tmp_path, **env)
    run(binaries / "hvdtrain", "engine", "build", "--install", cwd=tmp_path, **env)

    info = json.loads(run(binaries / "hvdtrain", "engine", "info", cwd=tmp_path, **env).stdout)
    assert info["nccl_obstacle"] is None
    assert info["installed"]["key"] == info["key"]
    checked = run(binaries / "horovodrun", "--check-build", cwd=tmp_path, **env).stdout
    for feature in ("PyTorch", "Gloo", "NCCL"):
        assert f"[X] {feature}" in checked

    # Doctor agrees that this Horovod fits this torch: its status is that of success.
    report = json.loads(run(binaries / "hvdtrain", "doctor", "--json", cwd=tmp_path, **env).stdout)
    assert {row["name"]: row["status"] for row in report["rows"]}["nccl"] == "ok"

    (tmp_path / "job.py").write_text(TORCH)
    launch = ("horovodrun", "-np", "2", "--gloo", "python", "job.py", str(tmp_path))
    run(binaries / launch[0], *launch[1:], cwd=tmp_path, **env)
    assert json.loads((tmp_path / "0").read_text())[1] == [1.0, 3.0, 5.0, 7.0, 9.0]


def _project(folder: Path) -> Path:
    """A copy to install from, because pip builds inside the folder it is given."""
    shutil.copytree(REPOSITORY / "hvdtrain", folder / "hvdtrain")
    for name in ("pyproject.toml", "setup.py"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


def _path() -> str:
    """The path without this environment's own scripts."""
    here = Path(sys.executable).parent
    return os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if Path(part) != here)
