"""ViT jobs: one trajectory in both frameworks, however a global batch is cut, and across a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.data import eval_batches
from hvdtrain.core.data.batches import EVALUATION_EPOCH
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.evaluating import evaluate
from tests.jobs.runs import FRAMEWORKS, TINY_VIT, train_all

# Ranks x accumulation: 1 x 8 or 2 x 4; of the others 2 x 2.
PLAIN = [*TINY_VIT, "max_steps=12", "checkpointing.save_steps=6"]
FEWER = [*TINY_VIT, "batch.global_batch_size=4", "max_steps=8"]
MIXED = [
    *FEWER,
    "model.hidden_act=gelu_new",
    "model.qkv_bias=false",
    "model.layer_norm_eps=1e-12",
    "model.image_size=16",
    "data.random_crop_padding=1",
    "data.horizontal_flip=true",
    "data.mixup_alpha=0.4",
    "task.label_smoothing=0.1",
    "compression={type: powersgd, start_powerSGD_iter: 2}",
]
EVERY = {"plain": PLAIN, "mixed": MIXED}

Runs = dict[tuple[str, int], dict[str, Path]]


def cached(scenarios: dict[str, list[str]]) -> dict[str, list[str]]:
    """The scenarios, once their images lie in the cache."""
    for overrides in scenarios.values():
        prepare_data(load_spec("vit", overrides), print)
    return scenarios


def train(
    root: Path, framework: str, ranks: int, scenarios: dict[str, list[str]], **more: Any
) -> dict[str, Path]:
    return train_all(root / f"{framework}-{ranks}", framework, ranks, cached(scenarios), spec="vit", **more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("vit")
    ours = train(root, "torch", 2, EVERY)
    # TensorFlow goes on from there, and trains the others from the start.
    places = {"plain": ours["plain"] / "checkpoint-6"}
    return {
        ("torch", 2): ours,
        ("tensorflow", 2): train(root, "tensorflow", 2, EVERY, resume=places),
    }


@pytest.mark.slow
def test_it_is_evaluated_on_a_folder_of_classes(runs: Runs, tmp_path: Path) -> None:
    run = runs["torch", 2]["mixed"]
    split = prepare_data(load_spec("vit", MIXED), print).validation
    batch = split.collate(np.arange(len(split)), EVALUATION_EPOCH, len(split))
    pixels, labels = batch.inputs["pixel_values"], batch.targets[:, 0]
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (tmp_path / "classes" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "classes" / str(label) / f"{i}.png")
    logged = {n: v for n, v in read_metrics(run)[1][-1].items() if n.startswith("eval_")}
    found = evaluate(run, "--data", tmp_path / "classes")
    assert np.sum(found.pop("confusion_matrix")) == len(split)
    assert found.pop("classes") == [str(number) for number in range(10)]
    assert found == {n: pytest.approx(v, rel=1e-12) for n, v in logged.items()}


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


def test_both_frameworks_follow_one_trajectory(runs: Runs) -> None:
    ours, theirs = losses(runs["torch", 2]["mixed"]), losses(runs["tensorflow", 2]["mixed"])
    assert len(ours) >= 8
    np.testing.assert_allclose(theirs, ours, rtol=1e-9)


def test_the_trajectories_are_of_different_jobs(runs: Runs) -> None:
    firsts = {name: losses(run)[:8].tobytes() for name, run in runs["torch", 2].items()}
    assert len(set(firsts.values())) == len(firsts)


def test_a_run_goes_on_in_the_other_framework(runs: Runs) -> None:
    rest = losses(runs["tensorflow", 2]["plain"])
    assert len(rest) == 6
    np.testing.assert_allclose(rest, losses(runs["torch", 2]["plain"])[6:], rtol=1e-10)


def test_both_frameworks_evaluate_alike(runs: Runs) -> None:
    (ours,), (theirs,) = (read_metrics(runs[framework, 2]["mixed"])[1] for framework in FRAMEWORKS)
    assert ours.keys() == theirs.keys()
    assert {"eval_accuracy", "eval_macro_f1", "eval_top_5_accuracy"} < ours.keys()
    for name, value in ours.items():
        assert theirs[name] == pytest.approx(value, rel=1e-9), name


def validation(overrides: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All images that are evaluated, as they are, and their classes."""
    batches = [
        *eval_batches(
            prepare_data(load_spec("vit", overrides), print).validation, per_device=359, rank=0, size=1
        )
    ]
    assert len(batches) == 1
    return batches[0].inputs["pixel_values"], batches[0].targets[:, 0]


@pytest.mark.parametrize("name", ["plain", "mixed"])
def test_transformers_opens_what_was_saved_and_finds_the_same_loss(runs: Runs, name: str) -> None:
    run = runs["tensorflow", 2][name]
    model, told = AutoModelForImageClassification.from_pretrained(
        run / "model", output_loading_info=True, dtype=torch.float64
    )
    assert not any(told.values()), told
    assert model.config.id2label == {n: str(n) for n in range(10)}
    images, classes = validation(EVERY[name])
    pixels = AutoImageProcessor.from_pretrained(run / "model")([*images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model.eval()(pixels.double()).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(classes).long())
    (evaluated,) = read_metrics(run)[1]
    assert evaluated["eval_loss"] == pytest.approx(loss.item(), rel=1e-6)
    accuracy = (logits.argmax(-1).numpy() == classes).mean()
    assert evaluated["eval_accuracy"] == pytest.approx(accuracy, rel=1e-12)


def test_kerashub_opens_what_was_saved_and_finds_the_same_logits(runs: Runs) -> None:
    folder, (images, _) = str(runs["torch", 2]["plain"] / "model"), validation(PLAIN)
    found = keras_hub.models.ViTImageClassifier.from_preset(folder, preprocessor=None, dtype="float32")
    pixels = images[:8] / 127.5 - 1.0
    logits = np.asarray(found(pixels.astype(np.float32)))
    with torch.no_grad():
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float64)
        expected = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_both_frameworks_train_on_from_a_folder_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ViTConfig(**sizes, image_size=8, patch_size=2, num_labels=5)
    ViTForImageClassification(config).save_pretrained(tmp_path / "model")
    told = {"image_mean": [0.2, 0.3, 0.4], "image_std": [0.5, 0.6, 0.7], "resample": 2}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(told))
    names = (*sizes, "image_size", "patch_size", "num_channels", "layer_norm_eps")
    settings = [s for s in TINY_VIT if not s.startswith("model.")]
    settings += [*(f"model.{name}=null" for name in names), "model.dtype=float64", "max_steps=4"]
    settings.append(f"model.init_from={tmp_path / 'model'}")
    curves = {f: losses(train(tmp_path, f, 1, {"on": settings})["on"]) for f in FRAMEWORKS}
    assert len(curves["torch"]) == 4
    np.testing.assert_allclose(curves["tensorflow"], curves["torch"], rtol=1e-11)
    # The head tells ten classes apart, and is drawn; the rest is the folder's.
    saved = load_model(tmp_path / "torch-1" / "on" / "model")
    assert saved["classifier.weight"].shape == (10, 32)
    before = load_model(tmp_path / "model")["vit.embeddings.position_embeddings"]
    np.testing.assert_allclose(saved["vit.embeddings.position_embeddings"], before, atol=0.01)
    written = json.loads((tmp_path / "torch-1" / "on" / "model" / "preprocessor_config.json").read_text())
    assert {name: written[name] for name in told} == told


# The packaged model, at its learning rate.
LONG = [
    "model.dtype=float64",
    "num_train_epochs=null",
    "max_steps=100",
    "batch.per_device_train_batch_size=4",
    "batch.global_batch_size=16",
    "schedule.warmup_ratio=null",
    "schedule.warmup_steps=10",
    "max_grad_norm=0.5",
    "logging.tensorboard=false",
    "evaluation.eval_steps=null",
    "num_threads=1",
]


@pytest.mark.slow
def test_a_hundred_updates_are_the_same_in_both_frameworks_on_one_and_two_ranks(tmp_path: Path) -> None:
    # Accumulation of 4 on one rank, of 2 on two.
    curves = [losses(train(tmp_path, f, n, {"on": LONG})["on"]) for f in FRAMEWORKS for n in (1, 2)]
    for curve in curves:
        assert len(curve) == 100
        np.testing.assert_allclose(curve, curves[0], rtol=1e-9)
    single = [*LONG, "model.dtype=float32", "max_steps=50"]
    ours, theirs = (losses(train(tmp_path / "single", f, 2, {"on": single})["on"]) for f in FRAMEWORKS)
    np.testing.assert_allclose(theirs, ours, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_cut_of_a_global_batch_gives_the_same_losses(framework: str, tmp_path: Path) -> None:
    cut = [*LONG, "batch.per_device_train_batch_size=2", "max_steps=20"]
    curves = [losses(train(tmp_path, framework, n, {"on": cut})["on"]) for n in (1, 2, 4, 8)]
    for curve in curves:
        np.testing.assert_allclose(curve, curves[0], rtol=1e-10)
