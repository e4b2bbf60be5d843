"""BERT in 16 bits on real ranks: the curve of float32, not one collective more, a scale that goes on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import FRAMEWORKS, TINY, train_all

PRECISIONS = ("no", "bf16", "fp16")
UPDATES = 24
SETTINGS = [
    *TINY,
    "batch.per_device_train_batch_size=4",
    "batch.gradient_accumulation_steps=2",
    "loss_scale={initial: 1024, growth_interval: 5}",
    # Several buckets.
    "communication.bucket_cap_mb=0.05",
    f"max_steps={UPDATES}",
    f"checkpointing.save_steps={UPDATES // 3}",
]
Runs = dict[str, dict[str, Path]]


class Trained(Runs):
    """Runs of a framework, made when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __missing__(self, framework: str) -> dict[str, Path]:
        scenarios = {p: [*SETTINGS, f"mixed_precision={p}"] for p in PRECISIONS}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOROVOD_TIMELINE", "DYNAMIC")
            self[framework] = train_all(self._root / framework, framework, 2, scenarios)
        return self[framework]


# TensorFlow takes its time to trace; its scale is quickly tested in test_loss_scale.py.
BOTH = pytest.mark.parametrize("framework", ["torch", pytest.param("tensorflow", marks=pytest.mark.slow)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Trained(tmp_path_factory.mktemp("precision"))


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


def check_curves(runs: dict[str, Path]) -> None:
    """Within 1 % of float32's validation loss."""
    ends = {p: read_metrics(runs[p])[1][-1]["eval_loss"] for p in PRECISIONS}
    assert ends == pytest.approx(dict.fromkeys(PRECISIONS, ends["no"]), rel=0.01)
    assert len(set(ends.values())) == len(PRECISIONS), "16 bits must be seen somewhere"


def check_frameworks(runs: Runs) -> None:
    """Within 2 % of each other, update by update."""
    for precision in PRECISIONS:
        ours, theirs = (losses(runs[framework][precision]) for framework in FRAMEWORKS)
        np.testing.assert_allclose(ours, theirs, rtol=0.02)


@BOTH
def test_16_bits_follow_the_curve_of_float32(runs: Runs, framework: str) -> None:
    check_curves(runs[framework])


@pytest.mark.slow
def test_the_frameworks_follow_one_curve(runs: Runs) -> None:
    check_frameworks(runs)


@pytest.mark.slow
def test_so_does_the_default_bert(tmp_path: Path) -> None:
    scenarios = {p: [f"mixed_precision={p}", "num_threads=1"] for p in PRECISIONS}
    runs = {f: train_all(tmp_path / f, f, 2, scenarios) for f in FRAMEWORKS}
    for framework in FRAMEWORKS:
        check_curves(runs[framework])
    check_frameworks(runs)


@BOTH
def test_scales_are_logged(runs: Runs, framework: str) -> None:
    lines = {p: read_metrics(runs[framework][p])[0] for p in PRECISIONS}
    grown = [1024.0 * 2 ** (i // 5) for i in range(UPDATES)]
    assert [line["loss_scale"] for line in lines["fp16"]] == grown
    assert {line["loss_scale"] for p in ("no", "bf16") for line in lines[p]} == {1.0}


@pytest.mark.slow
def test_a_scale_goes_on_in_the_other_framework(runs: Runs, tmp_path: Path) -> None:
    checkpoint = runs["torch"]["fp16"] / f"checkpoint-{UPDATES // 3}"
    saved = json.loads((checkpoint / "state.json").read_text())
    assert (saved["loss_scale"], saved["good_updates"]) == (2048.0, 3)
    scenarios = {"fp16": [*SETTINGS, "mixed_precision=fp16"]}
    found = train_all(tmp_path, "tensorflow", 2, scenarios, {"fp16": checkpoint})["fp16"]
    whole, rest = (read_metrics(run)[0] for run in (runs["torch"]["fp16"], found))
    expected = whole[UPDATES // 3 :]
    assert [line["loss_scale"] for line in rest] == [line["loss_scale"] for line in expected]
    assert [x["loss"] for x in rest] == pytest.approx([x["loss"] for x in expected], rel=0.01)


@BOTH
def test_not_one_collective_more_than_in_float32(runs: Runs, framework: str) -> None:
    counts = {p: collectives(run.with_suffix(".json").read_text()) for p, run in runs[framework].items()}
    buckets = len(json.loads((runs[framework]["no"] / "plan.json").read_text())["buckets"])
    assert buckets > 2
    assert counts["no"]["ALLREDUCE"] >= UPDATES * (buckets + 1)
    assert counts["fp16"] == counts["bf16"] == counts["no"]


def collectives(timeline: str) -> Counter[str]:
    """How often each kind of collective begins in a timeline of Horovod's."""
    return Counter(re.findall(r'"ph": "B", "name": "(ALLREDUCE|ALLGATHER|ALLTOALL|BROADCAST)"', timeline))
