"""A rank that leaves, stops or never joined: the others are told, and nobody hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.jobs.runs import ROOT, launch

LEAVING = str(Path(__file__).with_name("keras_leaving.py"))


# Not Keras' doing: the quick one is torch's.
@pytest.mark.slow
@pytest.mark.parametrize("how", ["return", "raise"])
def test_a_rank_that_leaves_early_ends_the_others(how: str) -> None:
    done = launch(2, [LEAVING, how], timeout=100)
    assert done.returncode != 0
    assert {"return": "Horovod has been shut down", "raise": "no space left for rank 1"}[how] in done.stdout


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("stop", "rank 1 stopped answering"),
        pytest.param("kill", "rank 1 ended without leaving training", marks=pytest.mark.slow),
    ],
)
def test_the_stall_guard_names_the_rank(how: str, told: str) -> None:
    done = launch(2, [LEAVING, how, "5"], timeout=100)
    assert done.returncode != 0
    # mpirun ends the others when it sees a killed rank itself.
    assert told in done.stdout or (how == "kill" and "signal 9" in done.stdout), done.stdout[-3000:]


@pytest.mark.parametrize(
    "call",
    [
        "import hvdtrain.keras as hvd; hvd.DistributedOptimizer(None)",
        pytest.param(
            "import hvdtrain.tensorflow as hvd; hvd.DistributedGradientTape(None)", marks=pytest.mark.slow
        ),
    ],
)
def test_a_forgotten_init_is_named(call: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert "call hvd.init() first" in done.stderr
