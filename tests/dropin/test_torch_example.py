"""The whole program in examples/, against the same training in NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.dropin.digits import reference_curve
from tests.jobs.runs import ROOT, launch

PROGRAM = str(ROOT / "examples" / "torch_digits.py")


def test_its_curve_is_that_of_one_process_in_numpy(tmp_path: Path) -> None:
    curve = tmp_path / "curve.json"
    done = launch(2, [PROGRAM, "--dtype", "float64", "--curve", str(curve)])
    assert done.returncode == 0, done.stdout[-3000:]
    np.testing.assert_allclose(json.loads(curve.read_text()), reference_curve(64), rtol=1e-9)


@pytest.mark.slow
def test_mixed_precision_learns_as_well(tmp_path: Path) -> None:
    curve = tmp_path / "curve.json"
    done = launch(2, [PROGRAM, "--amp", "--compression", "fp16", "--curve", str(curve)])
    assert done.returncode == 0, done.stdout[-3000:]
    np.testing.assert_allclose(json.loads(curve.read_text()), reference_curve(64), rtol=0.02)
