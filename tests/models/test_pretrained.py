"""`model.init_from`: folders that Transformers has saved, read by both frameworks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.pretrained import read_pretrained
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.families import family_of
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import JobSpec, load_spec, parse_spec
from tests.jobs.runs import FRAMEWORKS, TINY, TINY_GPT2, TINY_LLAMA, train_all

SIZES = {
    "bert": {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    "llama": {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 88,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    },
}
MODELS = {
    "bert": (BertConfig, BertForMaskedLM),
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
SETTINGS = {
    "bert": [*TINY, "batch.per_device_train_batch_size=2"],
    "gpt2": TINY_GPT2,
    "llama": TINY_LLAMA,
}


def save(folder: Path, kind: str, model: Any = None, **options: Any) -> Path:
    """A model with Transformers' initial values, which are none of ours, and a job's tokenizer."""
    config, head = MODELS[kind]
    torch.manual_seed(0)
    (model or head(config(**SIZES[kind]))).save_pretrained(folder, **options)
    for name, content in prepare_data(load_spec(kind, SETTINGS[kind]), print).files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save(tmp_path_factory.mktemp(kind), kind) for kind in MODELS}


def spec_of(folder: Path, text: str = "") -> JobSpec:
    return parse_spec(
        f"model: {{init_from: {json.dumps(str(folder))}, {text}}}\n"
        "data: {corpus: python-docs, max_seq_length: 32}\n"
        "batch: {per_device_train_batch_size: 2}\nmax_steps: 2\n"
    )


@pytest.mark.parametrize("kind", MODELS)
def test_the_spec_has_the_architecture_of_the_folder(folders: dict[str, Path], kind: str) -> None:
    spec: Any = spec_of(folders[kind], "dtype: float64")
    assert {name: getattr(spec.model, name) for name in SIZES[kind]} == SIZES[kind]
    assert spec.model.model_type == kind
    assert spec.model.dtype == "float64"
    assert spec.data.tokenizer_file == str(folders[kind] / "tokenizer.json")


@pytest.mark.parametrize("kind", MODELS)
def test_weights_are_read_whoever_has_cut_and_named_them(tmp_path: Path, kind: str) -> None:
    config, head = MODELS[kind]
    model = head(config(**SIZES[kind]))
    spec: Any = spec_of(save(tmp_path / "whole", kind, model)).model
    weights = family_of(spec).weights(spec)
    whole = read_pretrained(tmp_path / "whole", weights, (), "float32")
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert whole.keys() == {weight.name for weight in weights}
    for name, array in whole.items():
        np.testing.assert_array_equal(array, state[name])
    save(tmp_path / "shards", kind, model, max_shard_size="30KB")
    assert len([*(tmp_path / "shards").glob("*.safetensors")]) > 1
    shards = read_pretrained(tmp_path / "shards", weights, (), "float32")
    save(tmp_path / "half", kind, model.to(torch.bfloat16))
    half = read_pretrained(tmp_path / "half", weights, (), "float64")
    for name, array in whole.items():
        np.testing.assert_array_equal(shards[name], array)
        assert half[name].dtype == np.float64
        np.testing.assert_allclose(half[name], array, rtol=2**-7)


def test_a_model_without_a_head_lacks_the_heads_weights_alone(tmp_path: Path) -> None:
    base = BertModel(BertConfig(**SIZES["bert"]))
    folder = save(tmp_path, "bert", base)
    weights = family_of(spec_of(folder).model).weights(spec_of(folder).model)
    found = read_pretrained(folder, weights, ("cls.",), "float32")
    assert {w.name for w in weights} - found.keys() == {w.name for w in weights if w.name.startswith("cls.")}
    name = "encoder.layer.1.output.dense.weight"
    np.testing.assert_array_equal(found[f"bert.{name}"], base.state_dict()[name].numpy())
    with pytest.raises(CheckpointError, match=r"has no weight cls\.predictions"):
        read_pretrained(folder, weights, (), "float32")


@pytest.mark.parametrize("kind", MODELS)
def test_weights_that_the_model_has_no_layer_for_are_refused(tmp_path: Path, kind: str) -> None:
    spec: Any = spec_of(save(tmp_path, kind)).model
    layers = "n_layer" if kind == "gpt2" else "num_hidden_layers"
    fewer = spec.model_copy(update={layers: getattr(spec, layers) - 1})
    with pytest.raises(CheckpointError, match=r"and the model of config\.json has no such layer"):
        read_pretrained(tmp_path, family_of(spec).weights(fewer), (), "float32")


@pytest.mark.parametrize(("value", "told"), [(np.nan, "not finite"), (np.inf, "not finite"), (None, "int64")])
def test_weights_that_are_no_good_numbers_are_refused(tmp_path: Path, value: float | None, told: str) -> None:
    spec: Any = spec_of(save(tmp_path, "bert")).model
    weights, arrays = family_of(spec).weights(spec), dict(load_model(tmp_path))
    name = weights[3].name
    bad = arrays[name].astype(np.int64) if value is None else arrays[name].copy()
    if value is not None:
        bad.flat[1] = value
    save_file(arrays | {name: bad}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} .*{told}"):
        read_pretrained(tmp_path, weights, (), "float32")


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_that_cannot_be_used_is_one_message(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "bert")
    weights = family_of(spec_of(folder).model).weights(spec_of(folder).model)
    with pytest.raises(SpecError, match="hidden_size 64, there 32"):
        spec_of(folder, "hidden_size: 64")
    with pytest.raises(SpecError, match=r"the spec says 'gpt2', and .* of 'bert'"):
        spec_of(folder, "model_type: gpt2")
    with pytest.raises(SpecError, match="cannot be read"):
        spec_of(tmp_path / "nowhere")
    change(folder, position_embedding_type="relative_key")
    with pytest.raises(
        SpecError, match=r"position_embedding_type 'relative_key'.* computes .*'absolute' alone"
    ):
        spec_of(folder)
    change(folder, position_embedding_type="absolute", hidden_size=64)
    larger = family_of(spec_of(folder).model).weights(spec_of(folder).model)
    with pytest.raises(CheckpointError, match=r"has shape \(512, 32\), and the model's .* \(512, 64\)"):
        read_pretrained(folder, larger, (), "float32")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00002\.safetensors, which is missing"):
        read_pretrained(folder, weights, (), "float32")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"a pickle.*\n  python -c .*save_pretrained"):
        read_pretrained(folder, weights, (), "float32")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(SpecError, match=r"data\.tokenizer_file: required"):
        spec_of(folder)


@pytest.mark.parametrize(
    "kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "llama"))]
)
def test_both_frameworks_train_on_from_a_folder(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    settings = [
        "max_steps=3",
        "model.dtype=float64",
        f"model.init_from={folders[kind]}",
        "optimizer.learning_rate=1e-9",
        "schedule.type=constant",
        "schedule.warmup_ratio=null",
        "schedule.warmup_steps=0",
        *(f"model.{name}=null" for name in SIZES[kind]),
        *(s for s in SETTINGS[kind] if not s.startswith(("model.", "schedule."))),
    ]
    runs = {f: train_all(tmp_path / f, f, 2, {kind: settings}, spec=kind)[kind] for f in FRAMEWORKS}
    curves = [[line["loss"] for line in read_metrics(run)[0]] for run in runs.values()]
    assert len(curves[0]) == 3
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-12)
    before = load_model(folders[kind])
    for name, array in load_model(runs["torch"] / "model").items():
        # Adam moves each element by about the learning rate.
        np.testing.assert_allclose(array, before[name], rtol=0, atol=1e-8)
