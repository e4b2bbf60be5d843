"""Batch norm and frozen weights in real jobs: statistics of real rows, averaged when they are used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from tests.jobs.runs import FRAMEWORKS
from tests.own.jobs import evaluations, job, losses, train
from tests.own.normed import Normed

# 53 samples: the last update of an epoch has 5, in micro-batches of 3 and 2, and of none.
UPDATES, EVERY, SAVED = 10, 3, 6
NORMED = job(
    "Normed",
    "classes",
    "cross_entropy",
    UPDATES,
    f"evaluation.eval_steps={EVERY}",
    f"checkpointing.save_steps={SAVED}",
)
LOCAL = [*NORMED, "compression={type: local_sgd, sync_every: 2}", "evaluation.eval_steps=4"]
Runs = dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("buffers")
    return {
        framework: train(
            root / framework,
            framework,
            2,
            {"normed": NORMED, "resumed": NORMED, "local": LOCAL},
            {"resumed": root / framework / "normed" / f"checkpoint-{SAVED}"},
        )
        for framework in FRAMEWORKS
    }


def saved(folder: Path) -> dict[str, np.ndarray]:
    return dict(load_file(folder / WEIGHTS_FILE))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_statistics_are_those_of_real_rows_averaged_by_samples(runs: Runs, framework: str) -> None:
    run = runs[framework]["normed"]
    expected = Normed.start(run / "initial", 2, biased=framework == "tensorflow")
    # Of rank 0, whatever the other has made.
    np.testing.assert_array_equal(expected.statistics[1]["norm.running_mean"], np.zeros(8))
    expected.train(UPDATES, EVERY)
    np.testing.assert_allclose(losses(run), expected.losses, rtol=1e-10)
    found = saved(run / "model")
    for name, array in expected.statistics[0].items():
        np.testing.assert_allclose(found[name], array, rtol=1e-10, atol=1e-13, err_msg=name)
    for name, weight in expected.weights.items():
        np.testing.assert_allclose(found[name], weight.detach().numpy(), rtol=1e-9, atol=1e-12, err_msg=name)
    assert evaluations(run)[-1]["eval_loss"] == pytest.approx(expected.evaluate(), rel=1e-10)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_resumed_run_has_the_statistics_of_one_that_never_stopped(runs: Runs, framework: str) -> None:
    whole, resumed = runs[framework]["normed"], runs[framework]["resumed"]
    np.testing.assert_allclose(losses(resumed), losses(whole)[SAVED:], rtol=1e-12)
    ours, theirs = saved(whole / "model"), saved(resumed / "model")
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_allclose(theirs[name], array, rtol=1e-12, atol=1e-15, err_msg=name)
    first, second = (evaluations(run)[-1]["eval_loss"] for run in (whole, resumed))
    assert second == pytest.approx(first, rel=1e-12)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("name", ["normed", "local"])
def test_frozen_weights_stay_as_they_are(runs: Runs, framework: str, name: str) -> None:
    run = runs[framework][name]
    first, last = saved(run / "initial"), saved(run / "model")
    for weight in ("frozen.weight", "frozen.bias"):
        np.testing.assert_array_equal(last[weight], first[weight])
    for weight in ("first.weight", "norm.running_mean", "norm.running_var", "norm.weight"):
        assert np.all(last[weight] != first[weight]), weight


def test_both_frameworks_have_the_same_weights(runs: Runs) -> None:
    ours, theirs = (saved(runs[framework]["normed"] / "model") for framework in FRAMEWORKS)
    assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}
