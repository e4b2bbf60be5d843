"""What `hvdtrain export` makes opens in Transformers and in bare Keras, and computes the same in both."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from hvdtrain.cli import app
from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.manifest import FORMAT, MANIFEST_FILE, SPEC_FILE, STATE_FILE, Manifest
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE, save_model
from hvdtrain.core.checkpoints.rank_files import rank_file
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE
from hvdtrain.core.families import family_of
from hvdtrain.core.spec.job_spec import load_spec
from hvdtrain.core.spec.sections import ModelSection
from tests.models import test_bert, test_gpt2, test_llama, test_resnet, test_vit
from tests.models.images import resnet_values
from tests.models.support import far_from_initial
from tests.own.jobs import BASE, job
from tests.own.keras_models import Scores

BERT = test_bert.SMALL.model_copy(update={"dtype": "float64"})
MODELS: dict[str, ModelSection] = {
    "bert": BERT,
    "bert, untied": BERT.model_copy(update={"tie_word_embeddings": False, "hidden_act": "gelu_new"}),
    "bert, classifier": BERT.model_copy(update={"num_labels": 3}),
    "gpt2": test_gpt2.SMALL,
    "gpt2, untied": test_gpt2.SMALL.model_copy(
        update={"tie_word_embeddings": False, "n_inner": 20, "activation_function": "gelu"}
    ),
    **{
        kind: family.ModelSpec(**family.SMALL.model_dump() | family.KINDS[kind])
        for family, kinds in {
            test_llama: ("two, tied", "wide heads, biases", "scaled frequencies"),
            test_vit: ("no biases", "grey"),
            test_resnet: ("basic, early", "bottleneck, in its first"),
        }.items()
        for kind in kinds
    },
}


def save(folder: Path, model: ModelSection, step: int | None = None) -> Path:
    """A saved model with weights far from their initial values; with a step, a checkpoint of its own."""
    family = family_of(model)
    counts = getattr(family, "counts", lambda model: {})(model)
    values = resnet_values(model) if counts else far_from_initial(family.weights(model))  # type: ignore[arg-type]
    streams, files = {WEIGHTS_FILE: ArrayStream.of({**counts, **values})}, {"tokenizer.json": "{}\n"}
    if step is None:
        save_model(folder, streams, family.hf_config(model), files)
        return folder
    streams[OPTIMIZER_FILE] = streams[rank_file(0)] = ArrayStream.of({"moment": np.ones(3)})
    files |= {STATE_FILE: json.dumps({"format": FORMAT}), SPEC_FILE: "{}\n"}

    def manifest(written: Any) -> Manifest:
        return Manifest(FORMAT, step, "2026-01-01", "torch", 1, {}, written[SPEC_FILE].blake2b, {}, written)

    save_model(folder, streams, family.hf_config(model), files, manifest)
    return folder


def export(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    return done.exit_code, str(done.exception) if done.exit_code else done.output


def inputs_of(model: Any) -> dict[str, np.ndarray]:
    """Three rows; of a text model, one that ends sooner."""
    random = np.random.default_rng(0)
    if hasattr(model, "image_size"):
        shape = 3, model.image_size, model.image_size, model.num_channels
        return {"pixel_values": random.normal(size=shape)}
    mask = np.ones((3, 10), np.int32)
    mask[1, 6:] = 0
    found = {"input_ids": random.integers(5, model.vocab_size, mask.shape), "attention_mask": mask}
    if hasattr(model, "type_vocab_size"):
        found["token_type_ids"] = mask * (np.arange(10) > 4)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_family_computes_the_same_in_transformers_and_in_keras(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    folder = save(tmp_path / "checkpoint-7", model, step=7)
    code, told = export(folder, "--to", "huggingface")
    assert code == 0, told
    theirs = tmp_path / "checkpoint-7-huggingface"
    architecture = family_of(model).hf_config(model)["architectures"][0]
    assert told == (
        f"exported the model of step 7 in {folder}: "
        f"transformers.{architecture}.from_pretrained('{theirs}') opens it\n"
    )
    assert {file.name for file in theirs.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    opened, about = getattr(transformers, architecture).from_pretrained(
        theirs, output_loading_info=True, dtype=torch.float64
    )
    # Which Transformers has beside an untied decoder's own, and computes nothing from.
    about["missing_keys"] -= {"cls.predictions.bias"} if name == "bert, untied" else set()
    assert not any(about.values()), about

    assert export(folder, "--to", "keras", "--output-dir", tmp_path / "new" / "keras")[0] == 0
    file = tmp_path / "new" / "keras" / "model.keras"
    check_bare_keras(file)
    inputs = inputs_of(model)
    found = keras.saving.load_model(file)(inputs if len(inputs) > 1 else inputs["pixel_values"])
    tensors = {n: torch.from_numpy(a if a.ndim < 4 else a.transpose(0, 3, 1, 2)) for n, a in inputs.items()}
    with torch.no_grad():
        expected = opened.eval()(**tensors).logits.numpy()
    # Transformers computes Llama's norms and angles in float32, TensorFlow rounds a constant of GELU to it.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def check_bare_keras(file: Path) -> None:
    """Every object that the file names is Keras' own."""
    with zipfile.ZipFile(file) as archive:
        found = [json.loads(archive.read("config.json"))]
    modules = set()
    while found:
        each = found.pop()
        if isinstance(each, dict):
            modules.add(str(each.get("module")).partition(".")[0])
            found += each.values()
        elif isinstance(each, list):
            found += each
    assert modules <= {"keras", "builtins", "None"}


def test_a_model_that_keras_goes_on_training_has_its_dropout(tmp_path: Path) -> None:
    model = MODELS["gpt2"].model_copy(update=dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5))
    assert export(save(tmp_path / "model", model), "--to", "keras")[0] == 0
    opened, inputs = keras.saving.load_model(tmp_path / "model-keras" / "model.keras"), inputs_of(model)
    training, again, evaluating = (opened(inputs, training=how) for how in (True, True, False))
    assert not np.allclose(training, again)
    np.testing.assert_array_equal(evaluating, opened(inputs))


def test_safetensors_are_the_bytes_of_the_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-7", BERT, step=7)
    code, told = export(folder, "--to", "safetensors")
    (file,) = (tmp_path / "checkpoint-7-safetensors").iterdir()
    assert (code, file.name, file.read_bytes()) == (0, WEIGHTS_FILE, (folder / WEIGHTS_FILE).read_bytes())
    assert f"{file} has its {len(family_of(BERT).weights(BERT))} arrays" in told


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    whole = save(tmp_path / "checkpoint-7", BERT, step=7)
    damaged = save(tmp_path / "checkpoint-8", BERT, step=8)
    (damaged / OPTIMIZER_FILE).write_bytes((damaged / OPTIMIZER_FILE).read_bytes()[:-1] + b"!")
    torn = save(tmp_path / "checkpoint-9", BERT, step=9)
    (torn / MANIFEST_FILE).unlink()
    mixed = save(tmp_path / "mixed", BERT)
    (mixed / "config.json").write_text(
        (whole / "config.json").read_text().replace('"vocab_size": ', '"vocab_size": 1')
    )
    own = tmp_path / "own"
    save_model(own, {WEIGHTS_FILE: ArrayStream.of({"a": np.ones(2)})}, {"model_type": "custom"}, {})
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "kept").write_text("kept")
    file.write_text("kept")
    before = sorted(tmp_path.rglob("*"))
    for arguments, told in (
        ((tmp_path / "nowhere", "--to", "keras"), "nowhere: no such folder"),
        ((full, "--to", "keras"), "holds no model"),
        ((damaged, "--to", "safetensors"), "checkpoint-8/optimizer.safetensors: is damaged"),
        ((torn, "--to", "huggingface"), "checkpoint-9/manifest.json: is missing"),
        ((mixed, "--to", "keras"), "word_embeddings.weight: expected float64"),
        ((own, "--to", "huggingface"), "Transformers has no model_type custom"),
        ((own, "--to", "keras"), "spec.json"),
        ((whole, "--to", "huggingface", "--output-dir", full), "full: is there already"),
        ((whole, "--to", "safetensors", "--output-dir", file), "file: is there already"),
        ((whole, "--to", "keras", "--output-dir", file / "below"), "cannot be written"),
    ):
        code, message = export(*arguments)
        assert code == 1, arguments
        assert told in message, message
        assert sorted(tmp_path.rglob("*")) == before


def test_a_users_own_keras_model_is_saved_with_the_weights_of_either_framework(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(json.dumps(BASE))
    spec = load_spec(tmp_path / "own.yaml", job("Scores", "classes", "cross_entropy", 5))
    random, x = np.random.default_rng(0), np.linspace(-1.0, 1.0, 12).reshape(2, 6)
    first, second = (random.normal(size=shape) for shape in ((8, 6), (3, 8)))
    # As PyTorch has them.
    weights = {"first.weight": first, "second.weight": second}
    weights |= {"first.bias": first[:, 0], "second.bias": second[:, 0]}
    config = spec.model.model_dump(mode="json", exclude={"init_from"})
    save_model(tmp_path / "model", {WEIGHTS_FILE: ArrayStream.of(weights)}, config, {})
    (tmp_path / SPEC_FILE).write_text(spec.model_dump_json())
    code, told = export(tmp_path, "--to", "keras")
    assert code == 0, told
    opened = keras.saving.load_model(tmp_path / "model-keras" / "model.keras")
    assert [layer.name for layer in opened.layers[1:]] == [layer.name for layer in Scores().layers[1:]]
    expected = np.tanh(x @ first.T + first[:, 0]) @ second.T + second[:, 0]
    np.testing.assert_allclose(opened(x), expected, rtol=1e-12)
