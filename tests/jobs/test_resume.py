"""A run that goes on from a checkpoint: as if it had never stopped, in either framework, on any ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.compression import TopK
from hvdtrain.core.metrics import read_metrics
from hvdtrain.core.state import load_state, share_out
from tests.jobs.runs import TINY, train_all

SETTINGS = [
    *TINY,
    "model.dtype=float64",
    "data.packing=false",
    "data.validation_split=0.5",
    "batch={per_device_train_batch_size: 4, target_tokens_per_update: 300}",
    "communication.bucket_cap_mb=0.1",
    "max_steps=12",
    "checkpointing.save_steps=4",
]
SCENARIOS = {
    "plain": SETTINGS,
    "dgc": [
        *SETTINGS,
        "compression={type: topk, ratio: 0.05, momentum: 0.5}",
        "optimizer={type: sgd, momentum: 0.0, learning_rate: 0.1}",
    ],
    "powersgd": [*SETTINGS, "compression={type: powersgd, start_powerSGD_iter: 2}"],
    "fp16": [*SETTINGS, "compression={type: fp16}", "optimizer={type: sgd, learning_rate: 0.1}"],
}
Runs = dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("resume")
    found: Runs = {}
    found["whole"] = train_all(root / "whole", "torch", 2, SCENARIOS)
    saved = {name: run / "checkpoint-4" for name, run in found["whole"].items()}
    # Two launches: the other framework on as many ranks, and on another number of them.
    found["tensorflow"] = train_all(root / "tensorflow", "tensorflow", 2, SCENARIOS, saved)
    again = {name: run / "checkpoint-8" for name, run in found["tensorflow"].items()}
    found["torch"] = train_all(root / "torch", "torch", 2, SCENARIOS, again)
    found["one rank"] = train_all(root / "one", "torch", 1, SCENARIOS, again)
    return found


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(run)[0]}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("framework", "first"), [("tensorflow", 5), ("torch", 9)])
def test_it_goes_on_as_if_it_had_not_stopped(runs: Runs, framework: str, first: int, name: str) -> None:
    whole, found = losses(runs["whole"][name]), losses(runs[framework][name])
    assert list(found) == [*range(first, 13)]
    # powersgd's Q and residuals amplify rounding between the frameworks.
    tolerance = 1e-7 if name == "powersgd" else 1e-9
    for step, loss in found.items():
        assert loss == pytest.approx(whole[step], rel=tolerance), step
    lines = [read_metrics(runs[run][name])[0][-1] for run in ("whole", framework)]
    assert lines[0]["samples_consumed"] == lines[1]["samples_consumed"]


def test_without_compression_the_number_of_ranks_changes_nothing(runs: Runs) -> None:
    whole, found = losses(runs["whole"]["plain"]), losses(runs["one rank"]["plain"])
    assert list(found) == [9, 10, 11, 12]
    assert all(loss == pytest.approx(whole[step], rel=1e-9) for step, loss in found.items())


def test_residuals_are_saved_by_rank_and_shared_out_by_their_sum(runs: Runs) -> None:
    state = load_state(runs["whole"]["dgc"] / "checkpoint-8")
    for arrays in state.compression:
        assert set(arrays) == {"residual", "momentum"}
        ours, theirs = arrays["residual"]
        assert np.any(ours != theirs)
        (alone,) = share_out(TopK(momentum=0.5), arrays, 1)
        np.testing.assert_allclose(alone["residual"], ours + theirs, rtol=1e-12, atol=1e-15)
    # The same residuals, in the Hugging Face layout, whichever framework saved them.
    other = load_state(runs["tensorflow"]["dgc"] / "checkpoint-8")
    for arrays, theirs in zip(state.compression, other.compression, strict=True):
        np.testing.assert_allclose(arrays["residual"], theirs["residual"], rtol=1e-6, atol=1e-12)


def test_the_log_goes_on_where_the_checkpoint_was(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "again"
    settings = {"run": [*SETTINGS, "max_steps=6", "checkpointing.save_steps=4"]}
    first = train_all(run, "torch", 1, settings)["run"]
    before = losses(first)
    train_all(run, "torch", 1, settings, {"run": first / "checkpoint-4"})
    assert list(losses(first)) == [1, 2, 3, 4, 5, 6]
    assert losses(first) == pytest.approx(before, rel=1e-12)
