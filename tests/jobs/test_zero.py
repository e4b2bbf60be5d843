"""Sharded optimizer state: every stage gives stage 0's updates, on any ranks, in either framework."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.state import load_state
from hvdtrain.core.errors import SpecError
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from tests.core.test_plan import plan
from tests.jobs.runs import TINY, TINY_GPT2, TINY_VIT, small_corpus, train_all
from tests.own import jobs as own_jobs

GROUPS = "optimizer.groups=[{match: '*mlp*', learning_rate_factor: 0.5, weight_decay: 0.3}]"
# Many buckets, of sizes that 2 and 3 do not divide.
COMMON = [*TINY_GPT2, "batch.global_batch_size=12", "communication.bucket_cap_mb=0.05", "max_steps=8", GROUPS]
SAVED = [*COMMON, "checkpointing.save_steps=4"]
KINDS: dict[str, list[str]] = {
    "adamw": ["max_grad_norm=0.05", "gradient_checkpointing=true"],
    "lamb": ["optimizer.type=lamb"],
    "lars": ["optimizer.type=lars", "optimizer.learning_rate=0.1", "model.tie_word_embeddings=false"],
    "fp16": ["compression.type=fp16", "optimizer.type=sgd"],
    "int8": ["compression.type=int8"],
}
# Weights of matrix products travel as those round them.
MIXED = ["model.dtype=float32", "mixed_precision=bf16", "max_grad_norm=null"]
SHARDED = {name: [*SAVED, *more, "zero_stage=1"] for name, more in KINDS.items()}
WHOLE = {name: [*COMMON, *more] for name, more in KINDS.items()}
STAGES = [*((name, 1) for name in KINDS), ("adamw", 2), ("adamw", 3), ("lars", 3)]
Runs = dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Three ranks of PyTorch and two of TensorFlow, sharded; the whole on as many; and what goes on."""
    root = tmp_path_factory.mktemp("zero")
    both = {f"{name} {stage}": s for stage, kinds in ((0, WHOLE), (1, SHARDED)) for name, s in kinds.items()}
    both |= {f"{name} {stage}": [*SHARDED[name], f"zero_stage={stage}"] for name, stage in STAGES[5:]}
    mixed = {f"mixed {stage}": [*COMMON, *MIXED, f"zero_stage={stage}"] for stage in (0, 1, 3)}
    torch = train_all(root / "torch", "torch", 3, both | mixed, spec="gpt2")
    # TensorFlow takes its time to trace: it goes on, or has one micro-batch an update.
    few = {"lamb 1": both["lamb 1"]} | {name: mixed[name] for name in ("mixed 0", "mixed 1")}
    few = {name: [*sets, "batch.per_device_train_batch_size=6"] for name, sets in few.items()}
    goes_on = {f"adamw {stage}": both[f"adamw {stage}"] for stage in (1, 2, 3)}
    checkpoints = dict.fromkeys(goes_on, torch["adamw 1"] / "checkpoint-4")
    checkpoint = {"adamw 1": torch["adamw 3"] / "checkpoint-4"}
    on = {"adamw 1": [*both["adamw 1"], "zero_stage=0"]}
    return {
        "torch": torch,
        "tensorflow": train_all(
            root / "tensorflow", "tensorflow", 2, few | goes_on, checkpoints, spec="gpt2"
        ),
        "unsharded": train_all(root / "on", "torch", 1, on, checkpoint, spec="gpt2"),
    }


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_updates_are_those_of_stage_0(runs: Runs, name: str, stage: int) -> None:
    whole, sharded = runs["torch"][f"{name} 0"], runs["torch"][f"{name} {stage}"]
    # int8 rounds a sum once less, and 16 bits round sums in another order.
    tolerance = {"int8": 1e-3, "fp16": 1e-4}.get(name, 1e-12)
    np.testing.assert_allclose(losses(sharded), losses(whole), rtol=tolerance)
    assert losses(sharded)[0] == losses(whole)[0]
    if tolerance < 1e-10:
        expected = load_model(whole / "model")
        for weight, array in load_model(sharded / "model").items():
            np.testing.assert_allclose(array, expected[weight], rtol=1e-9, atol=1e-11, err_msg=weight)


def test_both_frameworks_follow_one_trajectory(runs: Runs) -> None:
    ours, theirs = (losses(runs[framework]["lamb 1"]) for framework in ("torch", "tensorflow"))
    np.testing.assert_allclose(theirs, ours, rtol=1e-10)


def test_in_tensorflow_gathered_layers_compute_what_whole_ones_do(runs: Runs) -> None:
    second, third = (runs["tensorflow"][f"adamw {stage}"] for stage in (2, 3))
    np.testing.assert_allclose(losses(third), losses(second), rtol=1e-14)
    expected = load_model(second / "model")
    for weight, array in load_model(third / "model").items():
        np.testing.assert_allclose(array, expected[weight], rtol=1e-9, atol=1e-12, err_msg=weight)


def test_weights_that_products_round_may_travel_in_16_bits(runs: Runs) -> None:
    """On two ranks losses are the same to the bit, and what is saved are the masters, in 32 bits."""
    whole, sharded = (runs["tensorflow"][f"mixed {stage}"] for stage in (0, 1))
    np.testing.assert_array_equal(losses(sharded), losses(whole))
    expected = load_model(whole / "model")
    for weight, array in load_model(sharded / "model").items():
        np.testing.assert_array_equal(array, expected[weight], err_msg=weight)
    for stage in (1, 3):
        whole, sharded = (runs["torch"][f"mixed {each}"] for each in (0, stage))
        np.testing.assert_allclose(losses(sharded), losses(whole), rtol=1e-5)
        masters = load_model(sharded / "model")["transformer.h.0.mlp.c_fc.weight"]
        assert (masters.view(np.uint32) & 0xFFFF).any()


def test_checkpoints_are_those_of_stage_0(runs: Runs) -> None:
    """Unsharded on disk: a run of three ranks goes on whole, and on two ranks of the other framework."""
    expected = losses(runs["torch"]["adamw 0"])[4:]
    np.testing.assert_allclose(losses(runs["unsharded"]["adamw 1"]), expected, rtol=1e-11)
    for stage in (1, 2, 3):
        np.testing.assert_allclose(losses(runs["tensorflow"][f"adamw {stage}"]), expected, rtol=1e-10)
    state = load_state(runs["torch"]["adamw 1"] / "checkpoint-4")
    shapes = load_model(runs["torch"]["adamw 1"] / "model").shapes
    kinds = ("exp_avg", "exp_avg_sq")
    assert state.moments.shapes == {
        f"{name}.{kind}": shape for name, shape in shapes.items() for kind in kinds
    }
    assert all(array.any() for name, array in state.moments.items() if name.endswith("exp_avg_sq"))


TENSORFLOW = [("tensorflow", "adamw", stage) for stage in (1, 2, 3)] + [
    ("tensorflow", "mixed", 1),
    ("torch", "mixed", 1),
    ("torch", "mixed", 3),
]


@pytest.mark.parametrize(("framework", "name", "stage"), [("torch", *each) for each in STAGES] + TENSORFLOW)
def test_bytes_sent_are_bytes_planned(runs: Runs, framework: str, name: str, stage: int) -> None:
    run = runs[framework][f"{name} {stage}"]
    planned = json.loads((run / "plan.json").read_text())["wire_bytes_per_update"]
    assert {line["wire_bytes"] for line in read_metrics(run)[0][1:]} == {planned}


def test_a_plan_divides_moments_by_ranks(runs: Runs) -> None:
    plans = [json.loads((runs["torch"][f"adamw {stage}"] / "plan.json").read_text()) for stage in (0, 1, 2)]
    whole, first, second = (each["memory"] for each in plans)
    for sharded in (first, second):
        assert whole["optimizer"] / 3 <= sharded["optimizer"] <= whole["optimizer"] / 3 * 1.02
        assert whole["weights"] <= sharded["weights"] <= whole["weights"] * 1.02
    assert whole["gradients"] <= first["gradients"] <= whole["gradients"] * 1.02
    # A rank's shards, a bucket that is filled, and two that are being summed.
    sizes = sorted(8 * bucket["elements"] for bucket in plans[2]["buckets"])
    assert second["gradients"] == pytest.approx(sum(sizes) / 3 + sum(sizes[-3:]), rel=0.02)


def test_what_a_skipped_update_could_not_give_back_is_refused() -> None:
    with pytest.raises(SpecError, match=r"compression.type: int8 remembers .* zero_stage: 1"):
        plan("zero_stage=2", "compression.type=int8", "batch.gradient_accumulation_steps=2")
    with pytest.raises(SpecError, match=r"compression.type: topk needs the whole sum"):
        plan("zero_stage=1", "compression.type=topk")
    assert plan("zero_stage=2", "compression.type=int8").size


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_number_of_ranks(framework: str, ranks: int, tmp_path: Path) -> None:
    """Fifty updates of four families with ragged epochs, accumulation, clipping, groups and batch norm."""
    rows = ["batch.per_device_train_batch_size=2", "batch.global_batch_size=24", "max_grad_norm=0.05"]
    bert = [*TINY, *small_corpus(tmp_path / "corpus"), "model.dtype=float64", *rows]
    resnet = ["model.embedding_size=8", "model.hidden_sizes=[8, 16]", "model.depths=[1, 1]", *rows]
    resnet += ["model.dtype=float64", "model.sync_batch_norm=true", "num_train_epochs=null"]
    resnet += ["logging.tensorboard=false", "num_threads=1"]
    kinds = {"gpt2": [*COMMON, "max_grad_norm=0.05"], "bert": bert, "resnet": resnet}
    kinds["vit"] = [*TINY_VIT, *rows]
    prepare_data(load_spec("vit", [*TINY_VIT, "max_steps=50"]), print)
    for spec, overrides in kinds.items():
        common = [*overrides, "communication.bucket_cap_mb=0.05", "max_steps=50"]
        scenarios = {str(stage): [*common, f"zero_stage={stage}"] for stage in range(4)}
        found = train_all(tmp_path / spec, framework, ranks, scenarios, spec=spec)
        whole, *sharded = (losses(found[stage]) for stage in scenarios)
        assert len(whole) == 50
        for each in sharded:
            np.testing.assert_allclose(each, whole, rtol=1e-12 if ranks <= 2 else 1e-10, err_msg=spec)


def test_a_rank_without_samples_takes_part_in_every_micro_batch(tmp_path: Path) -> None:
    """An epoch of 53 samples ends with an update of one: the other rank's micro-batches are all empty."""
    batch, first = "batch={global_batch_size: 4, per_device_train_batch_size: 1}", tmp_path / "runs" / "0"
    whole = own_jobs.job("Scores", "classes", "cross_entropy", 16, batch)
    # A user's model has other first values in every run.
    same = [*whole, f"model.init_from={first / 'initial'}"]
    scenarios = {"0": whole} | {stage: [*same, f"zero_stage={stage}"] for stage in ("1", "2", "3")}
    found = own_jobs.train(tmp_path / "runs", "torch", 2, scenarios)
    for stage in ("1", "2", "3"):
        np.testing.assert_allclose(losses(found[stage]), losses(found["0"]), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_over_gloo_the_sums_are_the_same(runs: Runs, framework: str, tmp_path: Path) -> None:
    """Where an all-to-all and a local sum stand for a reducescatter."""
    sharded = {"adamw 1": [*SHARDED["adamw"], "max_steps=4"]}
    found = train_all(tmp_path, framework, 2, sharded, wire="gloo", spec="gpt2")["adamw 1"]
    np.testing.assert_allclose(losses(found), losses(runs["torch"]["adamw 0"])[:4], rtol=1e-12)
