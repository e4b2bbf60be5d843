"""The job scripts on two hosts that reach each other by ssh only, through `horovodrun --hostfile`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import TINY
from tests.launch.cluster import Cluster, emulated_hosts

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[Cluster]:
    with emulated_hosts(2) as cluster:
        yield cluster


@pytest.mark.parametrize("script", ["torch_jobs/train_bert.py", "tf_jobs/train_bert.py"])
@pytest.mark.parametrize("wire", ["gloo", "mpi"])
def test_bert_trains_on_two_hosts(two_hosts: Cluster, script: str, wire: str, tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in two_hosts.names))
    settings = [part for override in (*TINY, "max_steps=30") for part in ("--set", override)]
    binaries = Path(sys.executable).parent
    command = [
        *(str(binaries / "horovodrun"), "-np", "2", "--hostfile", str(hostfile), f"--{wire}"),
        *("--network-interface", "eth0") * (wire == "gloo"),
        *(sys.executable, str(ROOT / script), *settings, "--output-dir", str(tmp_path / "out")),
    ]
    env = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "TF_CPP_MIN_LOG_LEVEL": "3"}
    status, output = two_hosts.run("nodea", command, cwd=ROOT, env=env, timeout_s=240)
    assert status == 0, output[-3000:]
    losses = np.array([line["loss"] for line in read_metrics(tmp_path / "out")[0]])
    assert losses[-5:].mean() < losses[:5].mean() - 0.2
