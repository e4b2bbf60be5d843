"""Updates in which a loss of the user's finds that nothing counts, and what a run that ends looks at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.run.skips import check_scale
from hvdtrain.core.run.state import RunState
from hvdtrain.core.spec.sections import LossScaleSpec
from hvdtrain.core.update.precision import LossScale
from tests.own.jobs import job, train

PAIR = job(
    "Scores",
    "points",
    "own:pair",
    6,
    "data.dataset=tests.own.uncounted:make",
    "model.dtype=float32",
    "mixed_precision=fp16",
    "loss_scale.initial=256.0",
    label_names=["labels", "count"],
)
SCENARIOS = {"together": PAIR, "alone": [*PAIR, "compression={type: local_sgd, sync_every: 2}"]}


@pytest.mark.parametrize("framework", ["torch", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_an_update_in_which_nothing_counts_is_empty_and_no_overflow(framework: str, tmp_path: Path) -> None:
    runs = train(tmp_path / "runs", framework, 2, SCENARIOS)
    lines = read_metrics(runs["together"])[0]
    # Of the first epoch's four updates, the second is passed over.
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["samples_consumed"] for line in lines] == [16, 48, 53, 69, 85, 101]
    assert [line["empty_updates"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert [line["skipped_updates"] for line in lines] == [0, 1, 1, 1, 1, 1]
    assert {line["loss_scale"] for line in lines} == {256.0}
    assert all(np.isfinite(line["loss"]) for line in lines)
    # Alone it is a step of each rank.
    lines = read_metrics(runs["alone"])[0]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert [line["empty_updates"] for line in lines] == [1, 1, 1]
    assert {line["loss_scale"] for line in lines} == {256.0}


def test_a_run_that_ends_for_its_loss_scale_leaves_statistics_as_they_were() -> None:
    weights = (Weight("weight", (2,), False, ZEROS), Weight("mean", (2,), False, ZEROS, buffer=True))
    held: dict[str, np.ndarray] = {"weight": np.ones(2), "mean": np.ones(2)}

    drawn = {"state": np.zeros(2)}

    def find_nonfinite(*arguments: Any) -> np.ndarray:
        held["mean"] = held["mean"] + 1.0
        drawn["state"] = drawn["state"] + 1.0
        return np.array([False, True])

    model = SimpleNamespace(
        read=lambda some: {w.name: held[w.name].copy() for w in some}, write=held.update, weighs=False
    )
    generators = SimpleNamespace(read=lambda: {"state": drawn["state"].copy()}, write=drawn.update)
    run: Any = SimpleNamespace(
        weights=weights,
        adapter=SimpleNamespace(model=model, find_nonfinite=find_nonfinite, generators=generators),
    )
    state = RunState(loss_scale=LossScale(1.0, 0, LossScaleSpec()))
    with pytest.raises(TrainingError, match="the first that is not finite is the gradient of weight"):
        check_scale(run, state, None, 1.0, together=False)  # type: ignore[arg-type]
    np.testing.assert_array_equal(held["mean"], np.ones(2))
    np.testing.assert_array_equal(drawn["state"], np.zeros(2))
