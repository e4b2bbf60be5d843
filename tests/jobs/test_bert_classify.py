"""Jobs of text classification: one trajectory in both frameworks, and metrics that are scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.evaluating import evaluate
from tests.jobs.runs import FRAMEWORKS, TINY_CLASSIFIER, train_all

# Global batches of 16 rows: 1 x 4 or 2 x 2 (ranks x accumulation).
PLAIN = [*TINY_CLASSIFIER, "max_steps=12", "checkpointing.save_steps=6"]
BF16 = [*TINY_CLASSIFIER, "model.dtype=float32", "mixed_precision=bf16", "max_steps=8"]
CLASSES = ["red", "green", "blue", "round", "square", "flat"]

Runs = dict[tuple[str, int], dict[str, Path]]


def write_rows(file: Path, count: int, seed: int) -> Path:
    """Pairs of texts that tell their class mostly: every fourth is of another."""
    random = np.random.default_rng(seed)
    words = ["and", "or", "not", "but"]
    lines = []
    for i in range(count):
        label, *_ = random.integers(len(CLASSES), size=1)
        told = (label + 1) % len(CLASSES) if i % 4 == 0 else label
        text = [CLASSES[told]] * random.integers(1, 20)
        pair = random.choice(words, random.integers(1, 20))
        lines.append(json.dumps({"a": " ".join(text), "b": " ".join(pair), "kind": CLASSES[label]}))
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a job on pairs; its 27 rows to evaluate on give 2 ranks different numbers of batches."""
    folder = tmp_path_factory.mktemp("pairs")
    return [
        *TINY_CLASSIFIER,
        "model.num_labels=6",
        "data.corpus=null",
        f"data.files=[{write_rows(folder / 'train.jsonl', 200, 0)}]",
        f"data.validation_files=[{write_rows(folder / 'dev.jsonl', 27, 1)}]",
        "data.validation_split=null",
        "data.text_field=a",
        "data.text_pair_field=b",
        "data.label_field=kind",
        "data.class_names=[red, green, blue, round, square, flat]",
        "task.label_smoothing=0.1",
        "batch.global_batch_size=24",
        "optimizer.learning_rate=1e-2",
        "evaluation.per_device_eval_batch_size=4",
        "max_steps=40",
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pairs: list[str]) -> Runs:
    root = tmp_path_factory.mktemp("bert-classify")
    every = {"plain": PLAIN, "pairs": pairs}
    of_ranks = {
        ("torch", 2): every,
        ("torch", 1): {"pairs": pairs},
        ("tensorflow", 2): every,
    }
    found: Runs = {}
    for (framework, ranks), scenarios in of_ranks.items():
        # TensorFlow goes on from there, and trains the others from the start.
        places = {"plain": found["torch", 2]["plain"] / "checkpoint-6"} if framework == "tensorflow" else {}
        place = root / f"{framework}-{ranks}"
        found[framework, ranks] = train_all(
            place, framework, ranks, scenarios, places if "plain" in scenarios else {}, spec="bert-classify"
        )
    return found


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


def test_both_frameworks_follow_one_trajectory(runs: Runs) -> None:
    ours, theirs = losses(runs["torch", 2]["pairs"]), losses(runs["tensorflow", 2]["pairs"])
    assert len(ours) == 40
    np.testing.assert_allclose(theirs, ours, rtol=1e-9)


def test_cutting_a_global_batch_changes_nothing(runs: Runs) -> None:
    ours, whole = (losses(runs["torch", ranks]["pairs"]) for ranks in (2, 1))
    np.testing.assert_allclose(ours, whole, rtol=1e-10)


def test_a_run_goes_on_in_the_other_framework(runs: Runs) -> None:
    rest = losses(runs["tensorflow", 2]["plain"])
    assert len(rest) == 6
    np.testing.assert_allclose(rest, losses(runs["torch", 2]["plain"])[6:], rtol=1e-10)


def logits_of(folder: Path, settings: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """What Transformers makes of the rows to evaluate on, and their classes."""
    model, told = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64
    )
    assert not any(told.values()), told
    split = prepare_data(load_spec("bert-classify", settings), print).validation
    batch = split.collate(np.arange(len(split)), 0, len(split))
    with torch.no_grad():
        inputs = {name: torch.from_numpy(array).long() for name, array in batch.inputs.items()}
        return model.eval()(**inputs).logits.numpy(), batch.targets[:, 0]


def test_it_is_evaluated_alone_and_on_other_rows(runs: Runs, pairs: list[str], tmp_path: Path) -> None:
    run = runs["torch", 2]["pairs"]
    logits, right = logits_of(run / "model", pairs)
    logged = {n: v for n, v in read_metrics(run)[1][-1].items() if n.startswith("eval_")}
    found = evaluate(run, "--framework", "tensorflow")
    assert found.pop("eval_loss") == pytest.approx(logged.pop("eval_loss"), rel=1e-10)
    assert found.pop("classes") == CLASSES
    confusion = metrics.confusion_matrix(right, logits.argmax(axis=1), labels=range(6))
    assert found.pop("confusion_matrix") == confusion.tolist()
    assert found == logged

    # Rows that lack some classes, which are the model's all the same.
    rows = write_rows(tmp_path / "more.jsonl", 27, 1).read_text().splitlines()
    kept = [line for line in rows if json.loads(line)["kind"] in ("red", "flat")]
    (tmp_path / "some.jsonl").write_text("\n".join(kept))
    some = evaluate(run / "model", "--data", tmp_path / "some.jsonl")
    assert some["eval_samples"] == len(kept)
    expected = np.where(np.isin(np.arange(6), (0, 5))[:, None], confusion, 0)
    assert some["confusion_matrix"] == expected.tolist()


@pytest.mark.parametrize(("framework", "ranks"), [("torch", 1), ("torch", 2), ("tensorflow", 2)])
def test_metrics_over_ragged_shares_are_those_of_scikit_learn(
    runs: Runs, pairs: list[str], framework: str, ranks: int
) -> None:
    run = runs[framework, ranks]["pairs"]
    logits, right = logits_of(run / "model", pairs)
    found = logits.argmax(axis=1)
    assert len(found) == 27
    assert len({*found}) > 2
    (evaluated,) = read_metrics(run)[1]
    expected: dict[str, Any] = {
        "eval_accuracy": metrics.accuracy_score(right, found),
        "eval_macro_f1": metrics.f1_score(right, found, average="macro"),
        "eval_matthews_correlation": metrics.matthews_corrcoef(right, found),
        "eval_top_5_accuracy": metrics.top_k_accuracy_score(right, logits, k=5, labels=range(6)),
        "eval_samples": 27,
    }
    assert {name: evaluated[name] for name in expected} == expected
    assert 0.3 < evaluated["eval_accuracy"] < 1.0
    logs = torch.log_softmax(torch.from_numpy(logits), -1)[range(27), right]
    assert evaluated["eval_loss"] == pytest.approx(-float(logs.mean()), rel=1e-10)


def test_a_saved_model_knows_its_classes_and_its_tokenizer(runs: Runs) -> None:
    folder = runs["tensorflow", 2]["pairs"] / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {str(number): name for number, name in enumerate(CLASSES)}
    assert config["label2id"] == {name: number for number, name in enumerate(CLASSES)}
    assert not (folder / "untrained.safetensors").exists()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("and", "or")["input_ids"]) == "[CLS] and [SEP] or [SEP]"


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root, found = tmp_path_factory.mktemp("bert-classify-long"), {}
    rows = ["batch.per_device_train_batch_size=1", "batch.global_batch_size=8"]
    long = [*TINY_CLASSIFIER, "max_steps=100", "schedule.warmup_steps=10", "batch.global_batch_size=null"]
    long += ["batch.gradient_accumulation_steps=2"]
    scenarios = {"long": long, "single": [*long, "model.dtype=float32", "max_steps=50"], "bf16": BF16}
    cut = {"cut": [*TINY_CLASSIFIER, *rows, "max_steps=20"]}
    for framework in FRAMEWORKS:
        for ranks in (1, 2, 4, 8):
            place = root / f"{framework}-{ranks}"
            every = cut | (scenarios if ranks <= 2 else {})
            found[framework, ranks] = train_all(place, framework, ranks, every, spec="bert-classify")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_both_frameworks_follow_one_long_trajectory(long_runs: Runs, ranks: int) -> None:
    ours, theirs = (long_runs[framework, ranks] for framework in FRAMEWORKS)
    assert len(losses(ours["long"])) == 100
    np.testing.assert_allclose(losses(theirs["long"]), losses(ours["long"]), rtol=1e-9)
    for name in ("single", "bf16"):
        np.testing.assert_allclose(losses(theirs[name]), losses(ours[name]), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_cut_of_a_global_batch_gives_one_curve(long_runs: Runs, framework: str) -> None:
    whole = losses(long_runs[framework, 1]["cut"])
    assert len(whole) == 20
    for ranks in (2, 4, 8):
        np.testing.assert_allclose(losses(long_runs[framework, ranks]["cut"]), whole, rtol=1e-10)
