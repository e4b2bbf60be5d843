"""ResNet jobs: one trajectory in both frameworks, statistics of real rows, of a rank or of all; folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.data import Batch, eval_batches, global_batches
from hvdtrain.core.data.order import rank_share
from hvdtrain.core.families import resnet
from hvdtrain.core.families.weights import initial_weights, statistics
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from hvdtrain.core.update.accumulation import Accumulation
from hvdtrain.tensorflow.model import Model as TensorFlowModel
from tests.jobs.runs import FRAMEWORKS, WORKER, launch, train_all
from tests.models.images import transformers_resnet

COMMON = (
    "model.dtype=float64",
    "num_train_epochs=null",
    "evaluation.eval_steps=null",
    "logging.tensorboard=false",
    "logging.progress_bar=false",
    "num_threads=1",
)
# Accumulation 2, clipping and warm-up, at the packaged learning rate.
_PACKAGED = [
    *COMMON,
    "batch={per_device_train_batch_size: 16, gradient_accumulation_steps: 2}",
    "schedule={type: cosine, warmup_steps: 4}",
    "max_grad_norm=0.5",
]
PACKAGED = [*_PACKAGED, "max_steps=15"]
LONG = [*_PACKAGED, "max_steps=100"]
FP32 = [*_PACKAGED, "model.dtype=float32", "max_steps=50"]
SMALL = (*COMMON, "model.embedding_size=8", "model.hidden_sizes=[8, 16]", "model.depths=[1, 1]")
# All 899 samples in each update: the fifth micro-batch of a rank has half its rows, the sixth none.
ROWS, STEPS = 100, 6
RAGGED = [
    *SMALL,
    "data.validation_split=0.5",
    f"batch={{per_device_train_batch_size: {ROWS}, gradient_accumulation_steps: {STEPS}}}",
    "checkpointing.save_steps=1",
    "max_steps=3",
]
SYNC = [*SMALL, "model.sync_batch_norm=true", "batch.global_batch_size=8", "schedule.warmup_ratio=0.2"]
FP16 = [
    *SYNC,
    "model.dtype=float32",
    "mixed_precision=fp16",
    "loss_scale={initial: 1099511627776}",
    "batch.per_device_train_batch_size=4",
    "max_steps=4",
]
Runs = dict[tuple[str, int], dict[str, Path]]


def sync(size: int) -> list[str]:
    """One global batch of 8 in one micro-batch on so many ranks."""
    return [
        *SYNC,
        f"batch.per_device_train_batch_size={8 // size}",
        "max_steps=20",
        "checkpointing.save_steps=10",
    ]


def pretrained(folder: Path) -> list[str]:
    """From a folder, whose weights hardly move."""
    sizes = (f"model.{n}=null" for n in ("num_labels", "embedding_size", "hidden_sizes"))
    others = ("model.depths=null", "model.layer_type=null", f"model.init_from={folder}")
    return [*COMMON, *sizes, *others, "max_steps=3", "optimizer.learning_rate=1e-9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as Transformers saves it, with statistics that are nobody's first."""
    place = tmp_path_factory.mktemp("pretrained")
    spec = resnet.ModelSpec(
        num_labels=10, embedding_size=4, hidden_sizes=(8, 12), depths=(1, 1), dtype="float64"
    )
    transformers_resnet(spec).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root, found = tmp_path_factory.mktemp("resnet"), {}
    for framework in FRAMEWORKS:
        scenarios = {
            "packaged": PACKAGED,
            "ragged": RAGGED,
            "ragged, shared": [*RAGGED, "model.sync_batch_norm=true"],
            "sync": sync(2),
            "fp16": FP16,
            "pretrained": pretrained(folder),
        }
        found[framework, 2] = train_all(root / f"{framework}-2", framework, 2, scenarios, spec="resnet")
    # Goes on from the other framework's two ranks.
    place = {"resumed": found["torch", 2]["sync"] / "checkpoint-10"}
    again = {"resumed": sync(1)}
    found["tensorflow", 1] = train_all(root / "tensorflow-1", "tensorflow", 1, again, place, spec="resnet")
    return found


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0] if "loss" in line])


def evaluation(run: Path) -> dict[str, Any]:
    return read_metrics(run)[1][-1]


@pytest.mark.parametrize("name", ["packaged", "ragged", "ragged, shared", "sync", "pretrained"])
def test_both_frameworks_follow_one_trajectory(runs: Runs, name: str) -> None:
    ours, theirs = (runs[framework, 2][name] for framework in FRAMEWORKS)
    assert len(losses(ours)) in (3, 15, 20)
    np.testing.assert_allclose(losses(theirs), losses(ours), rtol=1e-9)
    assert evaluation(theirs) == pytest.approx(evaluation(ours), rel=1e-9)
    theirs_arrays = load_model(theirs / "model")
    for array_name, array in load_model(ours / "model").items():
        np.testing.assert_allclose(theirs_arrays[array_name], array, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_statistics_are_those_of_real_rows_averaged_over_ranks(runs: Runs, framework: str) -> None:
    spec: Any = load_spec("resnet", RAGGED)
    train = prepare_data(spec, print).train
    first = next(global_batches(spec.seed, train.costs, Accumulation(1, len(train))))
    expected, loss = statistics_after(spec, train, first.indices)
    run = runs[framework, 2]["ragged"]
    assert losses(run)[0] == pytest.approx(loss / len(train), rel=1e-12)
    found = load_model(run / "checkpoint-1")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-12, atol=1e-14, err_msg=name)


def test_statistics_of_all_ranks_go_on_in_the_other_framework_on_fewer_ranks(runs: Runs) -> None:
    whole, resumed = runs["torch", 2]["sync"], runs["tensorflow", 1]["resumed"]
    assert len(losses(resumed)) == 10
    np.testing.assert_allclose(losses(resumed), losses(whole)[10:], rtol=1e-10)
    assert evaluation(resumed) == pytest.approx(evaluation(whole), rel=1e-10)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_skipped_updates_do_not_part_ranks_that_share_statistics(runs: Runs, framework: str) -> None:
    run = runs[framework, 2]["fp16"]
    lines = read_metrics(run)[0]
    assert lines[-1]["skipped_updates"] > 0
    assert len(losses(run)) == 4
    assert np.isfinite(losses(run)).all()
    for name, array in load_model(run / "model").items():
        assert np.isfinite(array).all(), name


@pytest.mark.parametrize("framework", ["torch", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_ranks_that_share_statistics_find_what_is_not_finite(framework: str, tmp_path: Path) -> None:
    listing = tmp_path / "scenarios.json"
    sets = [*FP16, "loss_scale={initial: 1099511627776, minimum: 1099511627776}"]
    listing.write_text(json.dumps([{"name": "run", "set": sets, "spec": "resnet"}]))
    done = launch(2, [str(WORKER), framework, str(listing)], timeout=200)
    assert done.returncode != 0
    assert "the first that is not finite is the gradient of " in done.stdout, done.stdout[-3000:]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_transformers_opens_what_was_saved_and_finds_the_same_loss(runs: Runs, framework: str) -> None:
    run, spec = runs[framework, 2]["packaged"], load_spec("resnet", PACKAGED)
    place = run / "model"
    model, told = AutoModelForImageClassification.from_pretrained(
        place, output_loading_info=True, dtype=torch.float64
    )
    assert not any(told.values()), told
    assert model.config.id2label == {i: str(i) for i in range(10)}
    processor, loss, right, count = AutoImageProcessor.from_pretrained(place), 0.0, 0, 0
    for batch in eval_batches(prepare_data(spec, print).validation, per_device=32, rank=0, size=1):
        real = int(batch.weight)
        given = processor([*batch.inputs["pixel_values"][:real]], return_tensors="pt")["pixel_values"]
        np.testing.assert_allclose(given, pixels(batch)[:real], rtol=0, atol=1e-6)
        with torch.no_grad():
            logits = model.eval()(pixels(batch)[:real]).logits
        labels = torch.from_numpy(batch.targets[:real, 0]).long()
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        right, count = right + int((logits.argmax(1) == labels).sum()), count + real
    evaluated = evaluation(run)
    assert evaluated["eval_loss"] == pytest.approx(loss / count, rel=1e-12)
    assert evaluated["eval_accuracy"] == right / count


def test_a_saved_model_comes_back_from_the_other_framework_bit_for_bit(runs: Runs) -> None:
    spec: Any = load_spec("resnet", PACKAGED)
    arrays = load_model(runs["torch", 2]["packaged"] / "model")
    model = TensorFlowModel(spec.model, resnet.weights(spec.model))
    model.write(arrays)
    found = dict(model.read()) | resnet.counts(spec.model)
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_a_run_starts_from_the_folders_weights(runs: Runs, folder: Path) -> None:
    before = load_model(folder)
    for name, array in load_model(runs["torch", 2]["pretrained"] / "model").items():
        if name.endswith(("weight", "bias")):
            np.testing.assert_allclose(array, before[name], rtol=0, atol=1e-6, err_msg=name)


def statistics_after(spec: Any, train: Any, indices: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """What Transformers' own layers keep of one update on two ranks, and the update's summed loss."""
    ranks, counts, total = [], [], 0.0
    for rank in range(2):
        model = fresh(spec)
        shares = [s for s in rank_share(indices, rank, 2, STEPS, ROWS) if len(s)]
        for share in shares:
            batch = train.collate(share, 0, len(share))
            logits = model(pixels(batch)).logits
            labels = torch.from_numpy(batch.targets[:, 0]).long()
            total += functional.cross_entropy(logits, labels, reduction="sum").item()
        counts.append(sum(map(len, shares)))
        ranks.append(
            {w.name: model.get_buffer(w.name).numpy() for w in statistics(resnet.weights(spec.model))}
        )
    return {n: np.average([r[n] for r in ranks], axis=0, weights=counts) for n in ranks[0]}, total


def fresh(spec: Any) -> torch.nn.Module:
    """Transformers' model with the run's initial values."""
    model = transformers_resnet(spec.model).train()
    arrays = initial_weights(resnet.weights(spec.model), spec.seed, "float64")
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=False)
    return model


def pixels(batch: Batch) -> torch.Tensor:
    scale, offset = batch.inputs["pixel_scale"], batch.inputs["pixel_offset"]
    return torch.from_numpy((batch.inputs["pixel_values"] * scale + offset).transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root, found = tmp_path_factory.mktemp("more"), {}
    for framework in FRAMEWORKS:
        for size in (1, 2, 4):
            scenarios = {"sync": sync(size)} | ({"long": LONG, "fp32": FP32} if size < 4 else {})
            place = root / f"{framework}-{size}"
            found[framework, size] = train_all(place, framework, size, scenarios, spec="resnet")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    # A ReLU that rounding turns, one of ten million in a run, moves a loss of float32 at once; so do ranks.
    ("name", "updates", "tolerance"),
    [("long", 100, 1e-9), ("fp32", 50, 2e-2)],
)
def test_long_runs_stay_together(
    more_runs: Runs, size: int, name: str, updates: int, tolerance: float
) -> None:
    ours, theirs = (losses(more_runs[framework, size][name]) for framework in FRAMEWORKS)
    assert len(ours) == updates
    np.testing.assert_allclose(theirs[:5], ours[:5], rtol=1e-4)
    np.testing.assert_allclose(theirs, ours, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_statistics_of_all_ranks_make_every_cut_equal(more_runs: Runs, framework: str) -> None:
    expected = losses(more_runs["torch", 1]["sync"])
    for size in (1, 2, 4):
        np.testing.assert_allclose(losses(more_runs[framework, size]["sync"]), expected, rtol=1e-10)
