"""The installed Horovod looks for tensors when they arrive, and who waits for one sleeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.runs import launch

WORKER = Path(__file__).with_name("wake_worker.py")
SLEEPER = Path(__file__).with_name("sleep_worker.py")


@pytest.mark.parametrize("wire", [pytest.param("gloo", marks=pytest.mark.slow), "mpirun"])
def test_a_tensor_ends_the_sleep_of_a_cycle(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "5000")
    # Sleeping out each cycle, 21 collectives one after another would take longer; leaving takes one.
    done = launch(2, [str(WORKER)], wire=wire, timeout=90)
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_rank_that_waits_leaves_its_core_to_others() -> None:
    done = launch(2, [str(SLEEPER)], wire="gloo", timeout=60)
    assert done.returncode == 0, done.stdout[-3000:]
