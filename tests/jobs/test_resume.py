"""A run that goes on from a checkpoint: as if it had never stopped, in either framework, on any ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.compression import TopK
from hvdtrain.core.metrics import read_metrics
from hvdtrain.core.state import load_state, share_out
from tests.jobs.runs import TINY, small_corpus, train_all

SETTINGS = [
    *TINY,
    "model.dtype=float64",
    "batch={per_device_train_batch_size: 4, target_tokens_per_update: 150}",
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
}
MORE = {
    "powersgd": [*SETTINGS, "compression={type: powersgd, start_powerSGD_iter: 2}"],
    "fp16": [*SETTINGS, "compression={type: fp16}", "optimizer={type: sgd, learning_rate: 0.1}"],
    "diloco": [
        *SETTINGS,
        "compression={type: diloco, sync_every: 2}",
        "optimizer={type: sgd, momentum: 0.0}",
    ],
}
Runs = dict[str, dict[str, Path]]


def stop_and_go(root: Path, scenarios: dict[str, list[str]]) -> Runs:
    """Each scenario unbroken in torch, from update 4 on in TensorFlow, and from its update 8 on in torch."""
    scenarios = {name: [*sets, *small_corpus(root)] for name, sets in scenarios.items()}
    found = {"whole": train_all(root / "whole", "torch", 2, scenarios)}
    saved = {name: run / "checkpoint-4" for name, run in found["whole"].items()}
    found["tensorflow"] = train_all(root / "tensorflow", "tensorflow", 2, scenarios, saved)
    again = {name: run / "checkpoint-8" for name, run in found["tensorflow"].items()}
    found["torch"] = train_all(root / "torch", "torch", 2, scenarios, again)
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return stop_and_go(tmp_path_factory.mktemp("resume"), SCENARIOS)


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(run)[0]}


def check(runs: Runs, name: str, framework: str, first: int, tolerance: float = 1e-9) -> None:
    whole, found = losses(runs["whole"][name]), losses(runs[framework][name])
    assert list(found) == [step for step in whole if step >= first]
    for step, loss in found.items():
        assert loss == pytest.approx(whole[step], rel=tolerance), step
    lines = [read_metrics(runs[run][name])[0][-1] for run in ("whole", framework)]
    assert lines[0]["samples_consumed"] == lines[1]["samples_consumed"]


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("framework", "first"), [("tensorflow", 5), ("torch", 9)])
def test_it_goes_on_as_if_it_had_not_stopped(runs: Runs, framework: str, first: int, name: str) -> None:
    check(runs, name, framework, first)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_so_do_other_policies(tmp_path: Path, name: str) -> None:
    found = stop_and_go(tmp_path, {name: MORE[name]})
    # powersgd's Q amplifies the rounding in which the frameworks differ.
    check(found, name, "tensorflow", 5, 1e-7)
    check(found, name, "torch", 9, 1e-7)


def test_another_number_of_ranks_changes_nothing_and_the_log_goes_on(runs: Runs, tmp_path: Path) -> None:
    before = runs["tensorflow"]["plain"]
    shutil.copytree(before, tmp_path / "plain")
    settings = {"plain": [*SETTINGS, *small_corpus(before.parents[1])]}
    train_all(tmp_path, "torch", 1, settings, {"plain": before / "checkpoint-8"})
    whole, found = losses(runs["whole"]["plain"]), losses(tmp_path / "plain")
    assert list(found) == [*range(5, 13)]
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
