"""`model.init_from` and classifiers: which head is taken, which is drawn, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.model_folder import UNTRAINED_FILE, WEIGHTS_FILE, load_model, save_model
from hvdtrain.core.checkpoints.pretrained import read_pretrained
from hvdtrain.core.checkpoints.saved_models import read_model
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.families import bert
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.run.initial import set_initial_values
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import JobSpec, load_spec, parse_spec
from tests.jobs.runs import FRAMEWORKS, TINY_CLASSIFIER, train_all

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
CLASSIFIER = {"classifier.weight", "classifier.bias"}


def transformers_folder(folder: Path, kind: Any, **config: Any) -> Path:
    """A model with Transformers' initial values and a job's tokenizer."""
    torch.manual_seed(0)
    kind(BertConfig(**SIZES, **config)).save_pretrained(folder)
    return with_tokenizer(folder)


def own_folder(folder: Path, **fields: Any) -> Path:
    """A model as a job saves it."""
    model = bert.ModelSpec(**SIZES, **fields)
    arrays, untrained = (
        initial_weights(table(model), 7, "float32") for table in (bert.weights, bert.untrained)
    )
    streams = {WEIGHTS_FILE: ArrayStream.of(arrays), UNTRAINED_FILE: ArrayStream.of(untrained)}
    save_model(folder, streams, bert.hf_config(model), {})
    return with_tokenizer(folder)


def with_tokenizer(folder: Path) -> Path:
    for name, content in prepare_data(load_spec("bert-classify", TINY_CLASSIFIER), print).files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def labels(*names: str) -> dict[str, Any]:
    numbers = {name: number for number, name in enumerate(names)}
    return {"id2label": {number: name for name, number in numbers.items()}, "label2id": numbers}


def spec_of(folder: Path, task: str = "text_classification", more: str = "") -> Any:
    return parse_spec(
        f"model: {{init_from: {json.dumps(str(folder))}, {more}}}\n"
        f"data: {{corpus: python-docs, max_seq_length: 32}}\ntask: {{type: {task}}}\n"
        "batch: {per_device_train_batch_size: 2}\nmax_steps: 2\n"
    )


def start(spec: JobSpec) -> dict[str, np.ndarray]:
    """The weights that a run of one rank starts from."""
    found: dict[str, np.ndarray] = {}
    ranks = SimpleNamespace(is_chief=True, broadcast=lambda array: array)
    adapter = SimpleNamespace(model=SimpleNamespace(write=found.update))
    run: Any = SimpleNamespace(
        spec=spec, weights=bert.weights(spec.model), ranks=ranks, adapter=adapter, family=bert
    )
    set_initial_values(run)
    return found


FOLDERS: dict[str, Any] = {
    "BertModel": (lambda folder: transformers_folder(folder, BertModel), CLASSIFIER),
    "BertForMaskedLM": (lambda folder: transformers_folder(folder, BertForMaskedLM), CLASSIFIER | POOLER),
    "BertForSequenceClassification": (
        lambda folder: transformers_folder(folder, BertForSequenceClassification, **labels("a", "b", "c")),
        set(),
    ),
    "other classes": (
        lambda folder: transformers_folder(folder, BertForSequenceClassification, **labels("a", "b")),
        CLASSIFIER,
    ),
    # Its pooler is the one that was drawn for other libraries.
    "our masked LM": (own_folder, CLASSIFIER),
    "our classifier": (lambda folder: own_folder(folder, num_labels=3), set()),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_classifier_starts_from_any_bert(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, drawn = FOLDERS[kind]
    folder = make(tmp_path)
    capsys.readouterr()
    spec = spec_of(folder, more="num_labels: 3")
    assert {name: getattr(spec.model, name) for name in SIZES} == SIZES
    found, held = start(spec), dict(load_model(folder))
    if kind == "our masked LM":
        held |= load_model(folder, "untrained.safetensors")
    assert found.keys() == {w.name for w in bert.weights(spec.model)}
    at_random = initial_weights(bert.weights(spec.model), spec.seed, "float32")
    for name, array in found.items():
        expected = at_random[name] if name in drawn else held.get(name, held.get(name.removeprefix("bert.")))
        np.testing.assert_array_equal(array, expected, err_msg=name)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == bool(drawn)
    if drawn:
        why = "its head has num_labels 2, not 3" if kind == "other classes" else "has no such head"
        names = ", ".join(w.name for w in bert.weights(spec.model) if w.name in drawn)
        assert told == [f"model.init_from {folder}: {why}; drawn: {names}"]


def test_the_number_of_classes_is_the_folders(tmp_path: Path) -> None:
    three = transformers_folder(tmp_path / "three", BertForSequenceClassification, **labels("a", "b", "c"))
    assert spec_of(three).model.num_labels == 3
    # Hugging Face does not write down that there are two.
    two = transformers_folder(tmp_path / "two", BertForSequenceClassification)
    assert "id2label" not in json.loads((two / "config.json").read_text())
    assert spec_of(two).model.num_labels == 2
    base = transformers_folder(tmp_path / "base", BertModel)
    with pytest.raises(SpecError, match=r"model\.num_labels: required by the task text_classification"):
        spec_of(base)


@pytest.mark.parametrize("saved", ["ours", "Transformers"])
def test_masked_lm_starts_from_a_classifier(
    tmp_path: Path, saved: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if saved == "ours":
        own_folder(tmp_path, num_labels=3)
    else:
        transformers_folder(tmp_path, BertForSequenceClassification, **labels("a", "b", "c"))
    spec = spec_of(tmp_path, "masked_lm")
    assert spec.model.num_labels is None
    capsys.readouterr()
    found, held = start(spec), load_model(tmp_path)
    drawn = [w.name for w in bert.weights(spec.model) if w.name.startswith("cls.")]
    assert {*found} - {*held} == {*drawn}
    assert capsys.readouterr().out == (
        f"model.init_from {tmp_path}: has no such head; drawn: {', '.join(drawn)}\n"
    )


def test_a_folder_whose_sizes_contradict_each_other_is_refused(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path, BertForSequenceClassification, **labels("a", "b", "c"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | labels("a", "b", "c", "d")))
    with pytest.raises(CheckpointError, match=r"classifier\.weight has shape \(3, 32\).* \(4, 32\): config"):
        start(spec_of(folder))


def test_a_saved_classifier_is_read_back(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, num_labels=5, classifier_dropout=0.25)
    assert read_model(folder) == bert.ModelSpec(**SIZES, num_labels=5, classifier_dropout=0.25)
    assert {*load_model(folder)} == {w.name for w in bert.weights(spec_of(folder).model)}
    assert spec_of(folder).model.classifier_dropout == 0.25


def test_shards_and_half_precision_are_read(tmp_path: Path) -> None:
    model = BertForSequenceClassification(BertConfig(**SIZES, **labels("a", "b", "c")))
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="30KB")
    weights = bert.weights(spec_of(with_tokenizer(tmp_path)).model)
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    found = read_pretrained(tmp_path, weights, (), "float64")
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found[name], tensor.double().numpy())


def test_both_frameworks_train_on_from_a_folder(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path, BertForSequenceClassification, **labels(*"abcdefgh"))
    settings = [
        *(s for s in TINY_CLASSIFIER if not s.startswith("model.")),
        *(f"model.{name}=null" for name in (*SIZES, "num_labels")),
        "model.dtype=float64",
        f"model.init_from={folder}",
        "max_steps=4",
        "optimizer.learning_rate=1e-9",
    ]
    runs = {
        f: train_all(tmp_path / f, f, 1, {"on": settings}, spec="bert-classify")["on"] for f in FRAMEWORKS
    }
    curves = [[line["loss"] for line in read_metrics(run)[0]] for run in runs.values()]
    assert len(curves[0]) == 4
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-12)
    before = load_model(folder)
    for name, array in load_model(runs["torch"] / "model").items():
        # Adam moves each element by about the learning rate.
        np.testing.assert_allclose(array, before[name], rtol=0, atol=1e-8)
