"""A run that goes on from a checkpoint: as if it had never stopped, in either framework, on any ranks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.checkpoints.finding import AUTO
from hvdtrain.core.checkpoints.manifest import STATE_FILE, read_manifest
from hvdtrain.core.checkpoints.rank_files import rank_file
from hvdtrain.core.checkpoints.state import TrainingState, load_state
from hvdtrain.core.compression import TopK
from hvdtrain.core.run.metrics import read_metrics
from tests.core.older_formats import make_format_2
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
    # Windows so small that a rank has no share in some of them: ranks apply different numbers of updates.
    "local": [
        *SETTINGS,
        "compression={type: local_sgd, sync_every: 2}",
        "batch={per_device_train_batch_size: 4, target_tokens_per_update: 12}",
    ],
}
MORE = {
    "powersgd": [*SETTINGS, "compression={type: powersgd, start_powerSGD_iter: 2}"],
    "fp16": [*SETTINGS, "compression={type: fp16}", "optimizer={type: sgd, learning_rate: 0.1}"],
    "diloco": [*SETTINGS, "compression={type: diloco, sync_every: 2}"],
    "overlapped": [*SETTINGS, "compression={type: local_sgd, sync_every: 2, overlap: true}"],
    # Checkpoint 4 is of ranks that have updated together, checkpoint 8 of ranks that have not.
    "post": [*SETTINGS, "compression={type: local_sgd, sync_every: 2, start_localSGD_iter: 6}"],
}
# With these ranks' weights are equal, and averaging after every update is summing gradients.
LINEAR = [
    *SETTINGS,
    "batch={per_device_train_batch_size: 4, global_batch_size: 8}",
    "task.normalize=example",
    "optimizer={type: sgd, momentum: 0.9, learning_rate: 0.1}",
    "max_grad_norm=null",
]
AVERAGED = {
    "summed": [*LINEAR, "compression={type: none}"],
    "averaged": [*LINEAR, "compression={type: local_sgd, sync_every: 1}"],
}
# It goes on from its own update 3, in the same framework and on the same ranks. Layers are computed again in
# the backward pass, with the same dropout.
DROPOUT = {
    "dropout": [
        *TINY,
        "model.hidden_dropout_prob=0.2",
        "model.attention_probs_dropout_prob=0.2",
        "batch={per_device_train_batch_size: 4, global_batch_size: 16}",
        "gradient_checkpointing=true",
        "max_steps=6",
        "checkpointing.save_steps=3",
    ]
}
Runs = dict[str, dict[str, Path]]


def stop_and_go(
    root: Path,
    scenarios: dict[str, list[str]],
    beside: dict[str, list[str]],
    dropout: dict[str, list[str]] | None = None,
) -> Runs:
    """Each scenario unbroken in torch, and from update 4 on in TensorFlow.

    Those beside them are trained in torch alone: unbroken, or ("stayed") as "local" from its update 4 on.
    Those with dropout are unbroken in both, and "NAME again" from update 3 on.
    """
    again = {f"{name} again": sets for name, sets in (dropout or {}).items()}
    both = with_corpus(root, {**(dropout or {}), **again})
    scenarios, beside = (with_corpus(root, each) for each in (scenarios, beside))
    stayed = {"stayed": root / "whole" / "local" / "checkpoint-4"} | thirds(root / "whole", again)
    found = {"whole": train_all(root / "whole", "torch", 2, scenarios | beside | both, stayed)}
    saved = {name: found["whole"][name] / "checkpoint-4" for name in scenarios}
    if "local" in saved:
        # As an earlier version laid it out.
        saved["local"] = make_format_2(shutil.copytree(saved["local"], root / "before" / "checkpoint-4"))
    saved |= thirds(root / "tensorflow", again)
    found["tensorflow"] = train_all(root / "tensorflow", "tensorflow", 2, scenarios | both, saved)
    return found


def thirds(root: Path, again: dict[str, list[str]]) -> dict[str, Path]:
    return {name: root / name.removesuffix(" again") / "checkpoint-3" for name in again}


def go_back(runs: Runs, root: Path, scenarios: dict[str, list[str]]) -> Runs:
    """Each scenario from TensorFlow's update 8 on in torch."""
    places = {name: runs["tensorflow"][name] / "checkpoint-8" for name in scenarios}
    return runs | {"torch": train_all(root / "torch", "torch", 2, with_corpus(root, scenarios), places)}


def with_corpus(root: Path, scenarios: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [*sets, *small_corpus(root)] for name, sets in scenarios.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    beside = AVERAGED | {"stayed": SCENARIOS["local"]}
    return stop_and_go(tmp_path_factory.mktemp("resume"), SCENARIOS, beside, DROPOUT)


@pytest.fixture(scope="module")
def runs_back(runs: Runs) -> Runs:
    return go_back(runs, runs["whole"]["plain"].parents[1], SCENARIOS)


@pytest.fixture(scope="module")
def alone(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two ranks that go on with one; the first where it was, so that its log goes on too.

    Its last checkpoint is damaged, so that the newest whole one is the one before.
    """
    before, root = runs["tensorflow"]["plain"], tmp_path_factory.mktemp("alone")
    shutil.copytree(before, root / "plain")
    weights = root / "plain" / "checkpoint-12" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    scenarios = with_corpus(before.parents[1], {"plain": SETTINGS} | AVERAGED)
    averaged = runs["whole"]["averaged"] / "checkpoint-4"
    places = dict.fromkeys(AVERAGED, averaged) | {"plain": AUTO}
    return train_all(root, "torch", 1, scenarios, places, allow=["compression"])


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
def test_it_goes_on_as_if_it_had_not_stopped(runs: Runs, name: str) -> None:
    check(runs, name, "tensorflow", 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_and_back_again(runs_back: Runs, name: str) -> None:
    check(runs_back, name, "torch", 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_so_do_other_policies(tmp_path: Path, name: str) -> None:
    scenarios = {name: MORE[name]}
    found = go_back(stop_and_go(tmp_path, scenarios, {}), tmp_path, scenarios)
    # powersgd's Q amplifies the rounding in which the frameworks differ.
    check(found, name, "tensorflow", 5, 1e-7)
    check(found, name, "torch", 9, 1e-7)


@pytest.mark.parametrize("framework", ["whole", "tensorflow"])
@pytest.mark.parametrize("name", DROPOUT)
def test_dropout_goes_on_to_the_bit(runs: Runs, framework: str, name: str) -> None:
    unbroken, again = (runs[framework][each] for each in (name, f"{name} again"))
    expected, found = losses(unbroken), losses(again)
    assert [*found] == [4, 5, 6]
    assert found == {step: expected[step] for step in found}
    own = [f"checkpoint-6/{rank_file(rank)}" for rank in range(2)]
    for file in ("model/model.safetensors", *own):
        assert (again / file).read_bytes() == (unbroken / file).read_bytes()
    # Dropout was on: each update draws other numbers than the one before.
    states = [(unbroken / f"checkpoint-{n}" / rank_file(1)).read_bytes() for n in (3, 6)]
    assert states[0] != states[1]


def test_another_number_of_ranks_changes_nothing_and_the_log_goes_on(
    runs: Runs, alone: dict[str, Path]
) -> None:
    whole, found = losses(runs["whole"]["plain"]), losses(alone["plain"])
    assert list(found) == [*range(5, 13)]
    assert all(loss == pytest.approx(whole[step], rel=1e-9) for step, loss in found.items())


@pytest.mark.parametrize("name", AVERAGED)
def test_on_another_number_of_ranks_or_together_local_moments_go_on_by_their_mean(
    runs: Runs, alone: dict[str, Path], name: str
) -> None:
    expected, found = losses(runs["whole"]["summed"]), losses(alone[name])
    assert list(found) == [*range(5, 13)]
    assert all(loss == pytest.approx(expected[step], rel=1e-11) for step, loss in found.items())


def state_of(checkpoint: Path) -> TrainingState:
    return load_state(checkpoint, read_manifest(checkpoint))


def check_without_a_trace(whole: Path, again: Path) -> None:
    expected, found = losses(whole), losses(again)
    assert list(found) == [6, 8, 10, 12]
    assert all(loss == pytest.approx(expected[step], rel=1e-12) for step, loss in found.items())
    ours, theirs = (state_of(run / "checkpoint-12") for run in (whole, again))
    assert ours.record.applied == theirs.record.applied
    for name in ours.moment_shapes:
        found, array = (np.stack([read() for read in state.own_moments(name)]) for state in (theirs, ours))
        np.testing.assert_allclose(found, array, rtol=1e-9, atol=1e-13, err_msg=name)


def test_local_updates_go_on_without_a_trace(runs: Runs) -> None:
    check_without_a_trace(runs["whole"]["local"], runs["whole"]["stayed"])


@pytest.mark.slow
def test_so_they_do_in_tensorflow(tmp_path: Path) -> None:
    scenarios = with_corpus(tmp_path, {"local": SCENARIOS["local"]})
    whole = train_all(tmp_path / "whole", "tensorflow", 2, scenarios)["local"]
    places = {"local": whole / "checkpoint-4"}
    check_without_a_trace(whole, train_all(tmp_path / "again", "tensorflow", 2, scenarios, places)["local"])


def test_local_moments_are_saved_by_rank_and_others_are_not(runs: Runs) -> None:
    shapes = {}
    for name in ("plain", "local"):
        state = state_of(runs["whole"][name] / "checkpoint-8")
        shapes[name] = state.moment_shapes
    assert shapes["local"] == {moment: (2, *shape) for moment, shape in shapes["plain"].items()}
    for name in shapes["local"]:
        ours, theirs = (read() for read in state.own_moments(name))
        assert np.any(ours != theirs), name
    assert state.record.applied[0] > state.record.applied[1] > 0
    assert "applied" not in (runs["whole"]["plain"] / "checkpoint-8" / STATE_FILE).read_text()


def residuals(checkpoint: Path) -> list[dict[str, np.ndarray]]:
    """Of each bucket, with a first axis of ranks."""
    state = state_of(checkpoint)
    names = TopK(momentum=0.5).residuals
    found = [state.residuals(bucket, names) for bucket in range(state.record.buckets)]
    return [{name: np.stack([read() for read in rows]) for name, rows in each.items()} for each in found]


def test_residuals_are_saved_by_rank(runs: Runs) -> None:
    saved = residuals(runs["whole"]["dgc"] / "checkpoint-8")
    for arrays in saved:
        assert set(arrays) == {"residual", "momentum"}
        ours, theirs = arrays["residual"]
        assert np.any(ours != theirs)
    # The same residuals, in the Hugging Face layout, whichever framework saved them.
    for arrays, theirs in zip(saved, residuals(runs["tensorflow"]["dgc"] / "checkpoint-8"), strict=True):
        np.testing.assert_allclose(arrays["residual"], theirs["residual"], rtol=1e-6, atol=1e-12)
