"""Same spec, same trajectory: whatever the framework, and however a global batch is cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.run.metrics import read_metrics
from tests.jobs import exact
from tests.jobs.runs import FRAMEWORKS, TINY, small_corpus, train_all

# One global batch of 8, cut as ranks x accumulation (x 1 row); whole topics as sequences differ in length.
CUTS = {1: 8, 2: 4, 4: 2}
RAGGED = [
    *TINY,
    "model.dtype=float64",
    "data.packing=false",
    "batch.per_device_train_batch_size=1",
    "batch.global_batch_size=8",
    "batch.gradient_accumulation_steps=null",
    "schedule.warmup_steps=1",
    "schedule.type=cosine",
    "max_grad_norm=0.5",
]
# The weights after its first update as well.
TWENTY = [*RAGGED, "max_steps=20", "checkpointing.save_steps=1"]
PACKED = [*TINY, "batch.per_device_train_batch_size=4", "batch.gradient_accumulation_steps=2", "max_steps=30"]
FP16 = [*PACKED, "compression.type=fp16"]

Runs = dict[tuple[str, int], dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("trajectory")
    found: Runs = {}
    for framework, ranks in [("torch", 1), ("torch", 2), ("tensorflow", 2)]:
        scenarios = {"twenty": TWENTY}
        if ranks == 2:
            scenarios["exact"] = [*EXACT, *small_corpus(root)]
        # TensorFlow takes its time to trace: what the adapters share the quick tests ask torch alone.
        if framework == "torch":
            scenarios["stages"] = [*RAGGED, "max_steps=6", f"batch={VARYING[ranks]['stages']}"]
        if (framework, ranks) == ("torch", 2):
            scenarios |= {"fp32": PACKED, "fp16": FP16, "epoch": [*RAGGED, *small_corpus(root), *EPOCH]}
        found[framework, ranks] = train_all(root / f"{framework}-{ranks}", framework, ranks, scenarios)
    return found


@pytest.fixture(scope="module")
def more_runs(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("more")
    found: Runs = {}
    for framework in FRAMEWORKS:
        for ranks in CUTS:
            scenarios = {name: [*RAGGED, "max_steps=6", f"batch={b}"] for name, b in VARYING[ranks].items()}
            if (framework, ranks) not in runs:
                scenarios["twenty"] = TWENTY
            if (framework, ranks) == ("tensorflow", 2):
                scenarios |= {"fp32": PACKED, "fp16": FP16, "epoch": [*RAGGED, *small_corpus(root), *EPOCH]}
            scenarios["untied"] = [*RAGGED, "max_steps=6", "model.tie_word_embeddings=false"]
            found[framework, ranks] = train_all(root / f"{framework}-{ranks}", framework, ranks, scenarios)
    for place, those in runs.items():
        found[place] = those | found[place]
    return found


# The same updates on 1, 2 and 4 ranks: two of 4 sequences, then of 8; and as many as have 200 tokens.
VARYING = {
    ranks: {
        "stages": f"{{per_device_train_batch_size: {rows}, gradient_accumulation_steps: "
        f"[{{from_step: 0, steps: {steps}}}, {{from_step: 2, steps: {2 * steps}}}]}}",
        "tokens": f"{{per_device_train_batch_size: {rows}, target_tokens_per_update: 200}}",
    }
    for ranks, rows, steps in [(1, 2, 2), (2, 2, 1), (4, 1, 1)]
}
# Updates that do not divide the epoch: its last one is smaller.
EPOCH = [
    "max_steps=null",
    "num_train_epochs=2",
    "batch.global_batch_size=16",
    "batch.per_device_train_batch_size=4",
]
# 2 ranks x 3 x 16 rows exceed the corpus: the epoch's only update is ragged, and some rows are padding.
EXACT = [*exact.SETTINGS, "batch.gradient_accumulation_steps=3"]


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.max(np.abs(a - b)) / np.max(np.abs(a)))


def largest_weight_difference(a: Path, b: Path) -> float:
    first, second = load_model(a), load_model(b)
    assert first.keys() == second.keys()
    # Softmax does not see the bias of the keys: its gradient is 0, and what moves it is rounding alone.
    compared = [name for name in first if not name.endswith("key.bias")]
    return max(relative(first[name], second[name]) for name in compared)


def check_cut(runs: Runs, framework: str, ranks: int) -> None:
    whole, cut = runs[framework, 1], runs[framework, ranks]
    assert relative(losses(whole["twenty"])[:2], losses(cut["twenty"])[:2]) < 1e-12
    first, last = ([run["twenty"] / name for run in (whole, cut)] for name in ("checkpoint-1", "model"))
    assert largest_weight_difference(*first) < 1e-12
    assert relative(losses(whole["twenty"]), losses(cut["twenty"])) < 1e-10
    assert largest_weight_difference(*last) < 1e-10
    tokens = [line["tokens"] for line in read_metrics(cut["twenty"])[0]]
    assert len(set(tokens)) > 3, "the token counts were meant to be ragged"


def test_cutting_a_global_batch_changes_nothing(runs: Runs) -> None:
    check_cut(runs, "torch", 2)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("ranks", [2, 4])
def test_nor_does_cutting_it_for_more_ranks(more_runs: Runs, framework: str, ranks: int) -> None:
    check_cut(more_runs, framework, ranks)


def check_varying(runs: Runs, framework: str, ranks: int, name: str) -> None:
    whole, cut = runs[framework, 1][name], runs[framework, ranks][name]
    assert relative(losses(whole), losses(cut)) < 1e-10
    assert largest_weight_difference(whole / "model", cut / "model") < 1e-10
    samples = [[line["samples"] for line in read_metrics(run)[0]] for run in (whole, cut)]
    assert samples[0] == samples[1]


def test_nor_where_the_batch_varies(runs: Runs) -> None:
    check_varying(runs, "torch", 2, "stages")
    assert [line["samples"] for line in read_metrics(runs["torch", 2]["stages"])[0]] == [4, 4, 8, 8, 8, 8]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", ["stages", "tokens"])
def test_nor_on_more_ranks(more_runs: Runs, framework: str, ranks: int, name: str) -> None:
    check_varying(more_runs, framework, ranks, name)
    lines = read_metrics(more_runs[framework, ranks][name])[0]
    if name == "stages":
        assert [line["samples"] for line in lines] == [4, 4, 8, 8, 8, 8]
    else:
        assert all(200 <= line["tokens"] < 200 + 32 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_embeddings_by_their_rows_are_the_same_embeddings(more_runs: Runs, framework: str) -> None:
    whole, rows = more_runs[framework, 1]["untied"], more_runs[framework, 2]["untied"]
    plans = [json.loads((run / "plan.json").read_text()) for run in (whole, rows)]
    assert [sum(b["compression"] == "rows" for b in plan["buckets"]) for plan in plans] == [0, 1]
    assert relative(losses(whole), losses(rows)) < 1e-10
    assert largest_weight_difference(whole / "model", rows / "model") < 1e-10
    assert {line["wire_bytes"] for line in read_metrics(rows)[0]} == {plans[1]["wire_bytes_per_update"]}
    assert relative(losses(more_runs["torch", 2]["untied"]), losses(rows)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_eight_ranks_change_nothing_either(more_runs: Runs, framework: str, tmp_path: Path) -> None:
    whole = more_runs[framework, 1]["twenty"]
    cut = train_all(tmp_path, framework, 8, {"twenty": [*RAGGED, "max_steps=20"]})["twenty"]
    assert relative(losses(whole)[:2], losses(cut)[:2]) < 1e-12
    assert relative(losses(whole), losses(cut)) < 1e-10
    assert largest_weight_difference(whole / "model", cut / "model") < 1e-10


def check_agreement(runs: Runs, ranks: int) -> None:
    a, b = runs["torch", ranks], runs["tensorflow", ranks]
    assert relative(losses(a["twenty"]), losses(b["twenty"])) < 1e-10
    assert largest_weight_difference(a["twenty"] / "model", b["twenty"] / "model") < 1e-8


def test_frameworks_agree_to_rounding_in_float64(runs: Runs) -> None:
    check_agreement(runs, 2)


@pytest.mark.slow
def test_so_they_do_on_one_rank(more_runs: Runs) -> None:
    check_agreement(more_runs, 1)


@pytest.mark.slow
def test_frameworks_agree_in_float32(more_runs: Runs) -> None:
    a, b = losses(more_runs["torch", 2]["fp32"]), losses(more_runs["tensorflow", 2]["fp32"])
    assert np.max(np.abs(a - b) / a) < 1e-3


def test_loss_falls(runs: Runs) -> None:
    found = losses(runs["torch", 2]["fp32"])
    assert found[-5:].mean() < found[:5].mean() - 0.2


def check_fp16(runs: Runs, framework: str) -> None:
    full, half = (read_metrics(runs[framework, 2][name])[0] for name in ("fp32", "fp16"))
    parameters = sum(w.size for w in load_model(runs[framework, 2]["fp32"] / "model").values())
    assert {line["wire_bytes"] for line in full} == {4 * parameters}
    # The first update gathers four bytes a bucket as well, to find its scale: two buckets.
    assert [line["wire_bytes"] for line in half] == [2 * parameters + 8] + [2 * parameters] * 29
    a, b = np.array([x["loss"] for x in full]), np.array([x["loss"] for x in half])
    assert np.max(np.abs(a - b) / a) < 0.01
    assert np.any(a != b), "fp16 rounding must be seen somewhere"
    assert read_metrics(runs[framework, 2]["fp16"])[1][-1]["wire_clips"] >= 0


def test_fp16_halves_the_wire_and_keeps_the_curve(runs: Runs) -> None:
    check_fp16(runs, "torch")


@pytest.mark.slow
def test_so_it_does_in_tensorflow(more_runs: Runs) -> None:
    check_fp16(more_runs, "tensorflow")


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_ragged_update_is_the_reference_update(runs: Runs, framework: str) -> None:
    run = runs[framework, 2]["exact"]
    exact.check_exact(run, [*EXACT, *small_corpus(run.parents[1])])


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_so_it_is_on_three_ranks(framework: str, tmp_path: Path) -> None:
    settings = [*exact.SETTINGS, "batch.gradient_accumulation_steps=2", *small_corpus(tmp_path)]
    exact.check_exact(train_all(tmp_path, framework, 3, {"run": settings})["run"], settings)


def test_every_sample_once_an_epoch(runs: Runs) -> None:
    lines = read_metrics(runs["torch", 2]["epoch"])[0]
    for epoch in (0, 1):
        samples = [line["samples"] for line in lines if line["epoch"] == epoch]
        assert samples[-1] < 16, "the last update of the epoch was meant to be smaller"
        assert set(samples[:-1]) == {16}
    assert lines[-1]["samples_consumed"] == 2 * sum(x["samples"] for x in lines if x["epoch"] == 0)


@pytest.mark.slow
def test_ragged_epochs_agree_across_frameworks(more_runs: Runs) -> None:
    a, b = more_runs["torch", 2]["epoch"], more_runs["tensorflow", 2]["epoch"]
    assert relative(losses(a), losses(b)) < 1e-11
    lines = [[(line["samples"], line["samples_consumed"]) for line in read_metrics(run)[0]] for run in (a, b)]
    assert lines[0] == lines[1]
    evaluations = [read_metrics(run)[1][-1]["eval_loss"] for run in (a, b)]
    assert evaluations[0] == pytest.approx(evaluations[1], rel=1e-11)
