"""The whole programs in examples/, against the same training in NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

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


def test_a_run_that_was_stopped_goes_on(tmp_path: Path) -> None:
    curve = tmp_path / "curve.json"
    path = str(ROOT / "examples" / "keras_digits.py")
    arguments = ["--compression", "fp16", "--curve", str(curve), "--state", str(tmp_path / "state")]
    assert launch(2, [path, *arguments], timeout=120).returncode == 0
    np.testing.assert_allclose(json.loads(curve.read_text()), reference_curve(64), rtol=0.02)
    # All epochs are done: nothing is left to train.
    assert launch(2, [path, *arguments], timeout=120).returncode == 0
    assert json.loads(curve.read_text()) == []
