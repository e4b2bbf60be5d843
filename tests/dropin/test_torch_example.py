"""The whole program in examples/, against the same training in NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.checkpoints.listing import list_checkpoints
from tests.dropin.digits import reference_curve
from tests.jobs.runs import ROOT, launch

PROGRAM = str(ROOT / "examples" / "torch_digits.py")
KILLED = str(ROOT / "tests" / "dropin" / "killed.py")


def test_stopped_twice_and_resumed_on_other_ranks_its_curve_is_that_of_one_process(tmp_path: Path) -> None:
    """24 updates an epoch: it is told to stop in the first, and killed in the second: update 30 was saved."""
    curve, state = tmp_path / "curve.json", tmp_path / "state"
    arguments = [PROGRAM, "--dtype", "float64", "--state", str(state), "--curve", str(curve)]
    done = launch(2, [KILLED, "16:SIGTERM", *arguments])
    assert done.returncode == 85, done.stdout[-3000:]
    saved = list_checkpoints(state, every_byte=True)[-1].step
    assert 16 < saved < 20
    assert f"preempted at update {saved}: go on from {state / f'checkpoint-{saved}'}" in done.stdout
    done = launch(2, [KILLED, "16", *arguments])
    assert done.returncode != 0
    assert not curve.exists()
    assert [each.step for each in list_checkpoints(state, every_byte=True)][-1] == 30
    done = launch(1, arguments)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "going on from" in done.stdout
    np.testing.assert_allclose(json.loads(curve.read_text()), reference_curve(64), rtol=1e-9)
    assert [each.ranks for each in list_checkpoints(state, every_byte=True)] == [1, 1]


@pytest.mark.slow
def test_mixed_precision_learns_as_well(tmp_path: Path) -> None:
    curve = tmp_path / "curve.json"
    done = launch(2, [PROGRAM, "--amp", "--compression", "fp16", "--curve", str(curve)])
    assert done.returncode == 0, done.stdout[-3000:]
    np.testing.assert_allclose(json.loads(curve.read_text()), reference_curve(64), rtol=0.02)
