"""A user's model with every compression policy, both precisions and workers, in real jobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import FRAMEWORKS
from tests.jobs.test_policies import POLICIES
from tests.own.jobs import job, losses, train
from tests.own.test_curves import WITH_COUNT, from_values_of

UPDATES = 24
CNN = job("CNN", "pictures", "cross_entropy", UPDATES, "model.args={channels: 2}")
PAIR = job("Scores", "points", "own:pair", 12, **WITH_COUNT)
OWN = {
    "int8": POLICIES["int8"],
    "powersgd": "{type: powersgd, start_powerSGD_iter: 4, matrix_approximation_rank: 2}",
    "by name": "[{match: 'conv1*', type: topk, ratio: 0.3}, {match: 'head*', type: int8}, {type: fp16}]",
    "fp16": POLICIES["fp16"],
    "sign": POLICIES["sign"],
    "topk": "{type: topk, ratio: 0.2, warmup_steps: 5}",
    "randomk": "{type: randomk, ratio: 0.5}",
    "local": "{type: local_sgd, sync_every: 3}",
    "diloco": "{type: diloco, sync_every: 4}",
    "adasum": "{type: adasum}",
}
QUICK = ("powersgd",)
SCENARIOS = {name: [*CNN, f"compression={policy}"] for name, policy in OWN.items()}
# It takes the momentum of the optimizer upon itself.
SCENARIOS["dgc"] = [
    *CNN,
    "optimizer.momentum=0.0",
    "compression={type: topk, ratio: 0.2, momentum: 0.9, local_clipping: 1.0}",
]
PRECISIONS = {
    "single": [*CNN, "model.dtype=float32"],
    "bf16": [*CNN, "model.dtype=float32", "mixed_precision=bf16"],
    # A scale at which no update overflows: one that is skipped has used its samples up.
    "fp16 products": [*CNN, "model.dtype=float32", "mixed_precision=fp16", "loss_scale.initial=256.0"],
    "pair in fp16": [*PAIR, "model.dtype=float32", "mixed_precision=fp16"],
    "normed in bf16": job(
        "Normed", "classes", "cross_entropy", 12, "model.dtype=float32", "mixed_precision=bf16"
    ),
}
LOCAL_PAIR = {"local pair": [*PAIR, "compression={type: local_sgd, sync_every: 2}"]}
WORKERS = {"workers": [*CNN, "data.dataloader_num_workers=2"]}
Runs = dict[str, dict[str, Path]]


def run_both(
    root: Path, scenarios: dict[str, list[str]], in_torch: dict[str, list[str]] | None = None
) -> Runs:
    """Two ranks of either framework; all CNNs start from one's first values, TensorFlow from PyTorch's."""
    first = f"model.init_from={root / 'torch' / 'plain' / 'initial'}"
    ours = scenarios | (in_torch or {})
    others = {n: [*sets, first] if CNN[0] in sets else sets for n, sets in ours.items()}
    torch = train(root / "torch", "torch", 2, {"plain": CNN, **others})
    theirs = from_values_of(torch, {"plain": CNN, **scenarios})
    return {"torch": torch, "tensorflow": train(root / "tensorflow", "tensorflow", 2, theirs)}


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    scenarios = {name: SCENARIOS[name] for name in QUICK} | PRECISIONS | LOCAL_PAIR
    return run_both(tmp_path_factory.mktemp("policies"), scenarios, WORKERS)


def check_policy(runs: Runs, name: str) -> None:
    ours, theirs = (losses(runs[framework][name]) for framework in FRAMEWORKS)
    # Rounding turns into another choice of what is sent now and then: no policy here is that near a tie.
    np.testing.assert_allclose(theirs, ours, rtol=1e-7, err_msg=name)
    tail = max(1, len(ours) // 4)
    assert ours[-tail:].mean() < 0.9 * ours[:tail].mean(), name


@pytest.mark.parametrize("name", [*QUICK, *LOCAL_PAIR])
def test_both_frameworks_follow_one_curve(quick: Runs, name: str) -> None:
    check_policy(quick, name)


@pytest.mark.slow
def test_so_they_do_with_every_policy(tmp_path: Path) -> None:
    runs = run_both(tmp_path, SCENARIOS)
    for name in SCENARIOS:
        check_policy(runs, name)
    curves = {losses(run).tobytes() for run in runs["torch"].values()}
    assert len(curves) == len(runs["torch"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_both_precisions_train(quick: Runs, framework: str) -> None:
    exact = losses(quick[framework]["plain"])
    for name, tolerance in (("single", 1e-4), ("bf16", 0.02), ("fp16 products", 0.002)):
        found = losses(quick[framework][name])
        # Rounding grows with the momentum.
        np.testing.assert_allclose(found[:18], exact[:18], rtol=tolerance, err_msg=name)
        assert np.max(np.abs(found - exact)) > 1e-9, name
    lines, _ = read_metrics(quick[framework]["fp16 products"])
    assert {line["loss_scale"] for line in lines} == {256.0}
    for name in ("pair in fp16", "normed in bf16"):
        found = losses(quick[framework][name])
        assert found[-3:].mean() < 0.9 * found[:3].mean(), name


def test_workers_change_nothing(quick: Runs) -> None:
    ours, theirs = (losses(quick["torch"][name]) for name in ("plain", "workers"))
    np.testing.assert_array_equal(theirs, ours)
