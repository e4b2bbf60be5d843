"""The whole programs in examples/, against the same training in NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.checkpoints.listing import list_checkpoints
from tests.dropin.digits import reference_curve
from tests.jobs.runs import ROOT, launch

# Torch's example is quick, and what these use of Keras is quickly tested in test_keras.py.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("program", ["keras_digits.py", "keras_custom_loop.py"])
def test_its_curve_is_that_of_one_process_in_numpy(program: str, tmp_path: Path) -> None:
    curve = tmp_path / "curve.json"
    path = str(ROOT / "examples" / program)
    done = launch(2, [path, "--dtype", "float64", "--curve", str(curve)], timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    np.testing.assert_allclose(json.loads(curve.read_text()), reference_curve(64), rtol=1e-9)


def test_stopped_twice_and_resumed_on_other_ranks_it_has_the_same_curve(tmp_path: Path) -> None:
    """24 updates an epoch: it is told to stop in the first, and killed in the second: update 30 was saved."""
    curve, state = tmp_path / "curve.json", tmp_path / "state"
    path = str(ROOT / "examples" / "keras_digits.py")
    arguments = [path, "--dtype", "float64", "--state", str(state), "--curve", str(curve)]
    killed = str(ROOT / "tests" / "dropin" / "killed.py")
    done = launch(2, [killed, "16:SIGTERM", *arguments], timeout=120)
    assert done.returncode == 85, done.stdout[-3000:]
    saved = list_checkpoints(state, every_byte=True)[-1].step
    assert 16 < saved < 20
    assert f"preempted at update {saved}: go on from" in done.stdout
    done = launch(2, [killed, "16", *arguments], timeout=120)
    assert done.returncode != 0
    assert [each.step for each in list_checkpoints(state, every_byte=True)][-1] == 30
    done = launch(1, arguments, timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    np.testing.assert_allclose(json.loads(curve.read_text()), reference_curve(64)[30:], rtol=1e-9)
    # All epochs are done: nothing is left to train.
    assert launch(1, arguments, timeout=120).returncode == 0
    assert json.loads(curve.read_text()) == []
