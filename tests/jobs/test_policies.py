"""Every compression policy in real jobs: the two frameworks follow one curve and send the planned bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.families import bert
from hvdtrain.core.plan.plan import make_plan
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.runs import FRAMEWORKS, TINY, train_all

UPDATES = 50
SETTINGS = [
    *TINY,
    "model.dtype=float64",
    "batch.per_device_train_batch_size=4",
    "batch.gradient_accumulation_steps=2",
    f"max_steps={UPDATES}",
    # Several buckets.
    "communication.bucket_cap_mb=0.1",
]
POLICIES = {
    "int8": "{type: int8}",
    "powersgd": "{type: powersgd, start_powerSGD_iter: 10, matrix_approximation_rank: 2}",
    "by name": "[{match: '*embeddings*', type: topk}, {match: '*LayerNorm*', type: none}, {type: fp16}]",
    "fp16": "{type: fp16}",
    "sign": "{type: sign}",
    "topk": "{type: topk, ratio: 0.02, warmup_steps: 10}",
    "dgc": "{type: topk, ratio: 0.02, momentum: 0.9, local_clipping: 1.0}",
    "randomk": "{type: randomk, ratio: 0.1}",
    "cold powersgd": "{type: powersgd, start_powerSGD_iter: 0, warm_start: false}",
    "int8 without feedback": "{type: int8, use_error_feedback: false, block_size: 64}",
}


@pytest.mark.slow
def test_a_repeated_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    for framework in FRAMEWORKS:
        names = ("int8", "powersgd", "randomk", "fp16")
        scenarios = {
            f"{name} {time}": [*SETTINGS, "max_steps=15", f"compression={POLICIES[name]}"]
            for name in names
            for time in ("first", "again")
        }
        runs = train_all(tmp_path / framework, framework, 2, scenarios)
        for name in names:
            lines = [read_metrics(runs[f"{name} {time}"])[0] for time in ("first", "again")]
            first, again = ([line["loss"] for line in found] for found in lines)
            assert first == again, name


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_the_frameworks_follow_one_curve_whatever_the_policy(name: str, tmp_path: Path) -> None:
    compare(tmp_path, {name: POLICIES[name]})


def compare(directory: Path, policies: dict[str, str]) -> None:
    scenarios = {name: [*SETTINGS, f"compression={found}"] for name, found in policies.items()}
    runs = [train_all(directory / framework, framework, 2, scenarios) for framework in FRAMEWORKS]
    for name, overrides in scenarios.items():
        lines = [read_metrics(run[name])[0] for run in runs]
        torch, tensorflow = (np.array([line["loss"] for line in found]) for found in lines)
        assert np.max(np.abs(torch - tensorflow) / torch) < 1e-7, name
        assert torch[-10:].mean() < torch[:5].mean() - 0.1, name
        planned = planned_bytes(overrides)
        for found in lines:
            assert [line["wire_bytes"] for line in found] == planned, name


def planned_bytes(overrides: list[str]) -> list[int]:
    """Bytes of each update by the policy in force at it."""
    spec = load_spec("bert", overrides)
    plan = make_plan(
        spec,
        bert.weights(spec.model),
        size=2,
        threads=1,
        train_tokens=np.full(1000, 32),
        validation_samples=0,
    )
    assert len(plan.buckets) > 2
    found = [spec.rules.at(update).wire_bytes(plan.buckets, 8, 2) for update in range(1, UPDATES + 1)]
    assert plan.wire_bytes_per_update == found[-1]
    return found
