"""Llama's table of weights against Transformers, and its two networks against each other."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from hvdtrain.core.checkpoints.pretrained import read_pretrained
from hvdtrain.core.data import Batch
from hvdtrain.core.families import llama
from hvdtrain.core.families.llama import ModelSpec
from hvdtrain.core.families.rope import rope_table
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.spec.job_spec import parse_spec
from hvdtrain.core.spec.reading import PACKAGED_SPECS
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import model as torch_model
from tests.models.support import (
    BORDERS,
    DOCUMENTS,
    as_hugging_face,
    batch_of,
    bytes_saved,
    check_products_in_16_bits,
    far_from_initial,
)

SMALL = ModelSpec(
    vocab_size=97,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    max_position_embeddings=16,
    rms_norm_eps=1e-3,
    dtype="float64",
)
# Kinds of the model: who shares keys and values, the head, and what LlamaConfig has beside.
KINDS: dict[str, dict[str, Any]] = {
    "one head of keys": {"num_key_value_heads": 1},
    "two, tied": {"tie_word_embeddings": True},
    "each its own, tied": {"num_key_value_heads": None, "tie_word_embeddings": True},
    "wide heads, biases": {"head_dim": 10, "attention_bias": True, "mlp_bias": True},
    "scaled positions": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    "scaled frequencies": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        "head_dim": 16,
    },
}
kinds = pytest.mark.parametrize("kind", KINDS)


def changed(spec: ModelSpec, **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate(spec.model_dump() | fields)


def hugging_face(model: ModelSpec) -> LlamaForCausalLM:
    """What Transformers builds from the `config.json` of a saved model."""
    config = LlamaConfig(**llama.hf_config(model), bos_token_id=0, eos_token_id=0)
    config._attn_implementation = "sdpa"
    return LlamaForCausalLM(config).to(getattr(torch, model.dtype)).eval()


def filled(model: ModelSpec, scale: float = 1.0) -> LlamaForCausalLM:
    found = hugging_face(model)
    arrays = {n: torch.from_numpy(a * scale) for n, a in far_from_initial(llama.weights(model)).items()}
    missing, unexpected = found.load_state_dict(arrays, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    return found


def frequencies(rope: dict[str, Any], size: int) -> np.ndarray:
    """Of each pair of a head's elements, as Llama 3's authors and `transformers` define them."""
    found = []
    for pair in range(size // 2):
        frequency = 1.0 / rope["rope_theta"] ** (2 * pair / size)
        wavelength, factor = 2 * math.pi / frequency, rope.get("factor", 1.0)
        if rope["rope_type"] == "llama3":
            original = rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            share = (original / wavelength - low) / (high - low)
            if wavelength < original / high:
                factor = 1.0
            elif wavelength <= original / low:
                factor = 1.0 / ((1 - share) / factor + share)
        found.append(frequency / factor)
    return np.array(found)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own Llama, with float64 where it computes in float32."""

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotation(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = frequencies(self.config.rope_parameters, self.config.head_dim)
        angles = position_ids[..., None] * torch.from_numpy(np.tile(found, 2))
        return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", rotation)


def models(spec: ModelSpec, compute: str | None = None) -> tuple[torch_model.Model, tensorflow_model.Model]:
    table = llama.weights(spec)
    found = torch_model.Model(spec, table, compute), tensorflow_model.Model(spec, table, compute)
    arrays = {name: a.astype(spec.dtype) for name, a in far_from_initial(table).items()}
    for model in found:
        model.write(arrays)
    return found


def logits_of(spec: ModelSpec, batch: Batch) -> list[np.ndarray]:
    """Of both frameworks, (rows, length - 1, vocab_size)."""
    ours, theirs = models(spec)
    with torch.no_grad():
        mine = ours.network.logits(ours.network.features(torch_model.tensors(batch), False)).numpy()
    found = theirs.network.logits(theirs.network.features(tensorflow_model.tensors(batch), False))
    return [mine, found.numpy().reshape(mine.shape)]


def by_transformers(spec: ModelSpec, batch: Batch) -> np.ndarray:
    with torch.no_grad():
        ids = torch.from_numpy(batch.inputs["input_ids"]).long()
        found: np.ndarray = filled(spec)(input_ids=ids).logits[:, :-1].numpy()
    return found


@kinds
def test_the_table_is_that_of_transformers(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    theirs = {name: tuple(p.shape) for name, p in hugging_face(spec).named_parameters()}
    assert {w.name: w.shape for w in llama.weights(spec)} == theirs


@kinds
def test_a_model_gives_back_the_weights_it_was_given(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    arrays = far_from_initial(llama.weights(spec))
    for model in models(spec):
        found = dict(model.read())
        assert found.keys() == arrays.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_initial_values_are_those_of_transformers() -> None:
    for name, array in initial_weights(llama.weights(changed(SMALL, hidden_size=96)), 0, "float64").items():
        if array.ndim == 2:
            assert array.std() == pytest.approx(0.02, rel=0.1), name
        else:
            assert set(array) == {1.0}, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("in_float64")
def test_both_frameworks_compute_the_logits_of_transformers_in_float64(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    batch = batch_of(spec)
    expected = by_transformers(spec, batch)
    for logits in logits_of(spec, batch):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@kinds
def test_both_frameworks_compute_the_logits_of_transformers_as_it_is(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind], dtype="float32")
    batch = batch_of(spec)
    expected = by_transformers(spec, batch)
    for logits in logits_of(spec, batch):
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("documents", [(), *((name,) for name in DOCUMENTS), DOCUMENTS], ids=" and ".join)
def test_both_frameworks_compute_the_same_loss_and_gradients(documents: tuple[str, ...], kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind])
    batch, (ours, theirs) = batch_of(spec, documents), models(spec)
    loss = ours.loss_sum(torch_model.tensors(batch), training=True)
    loss.backward()
    with tf.GradientTape() as tape:
        theirs_loss = theirs.loss_sum(tensorflow_model.tensors(batch), training=True)
    assert float(theirs_loss) == pytest.approx(loss.item(), rel=1e-13)
    found = tape.gradient(theirs_loss, theirs.parameters)
    for weight in llama.weights(spec):
        expected = ours.parameters[weight.name].grad.numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        gradient = as_hugging_face(weight, found[weight.name])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12 * scale, err_msg=weight.name)


@pytest.mark.usefixtures("in_float64")
def test_documents_in_one_row_do_not_see_each_other() -> None:
    batch, alone, rows = batch_of(SMALL, DOCUMENTS), filled(SMALL), []
    with torch.no_grad():
        for ids, border in zip(torch.from_numpy(batch.inputs["input_ids"]).long(), BORDERS, strict=True):
            parts = [alone(input_ids=part[None]).logits[0] for part in (ids[:border], ids[border:])]
            rows.append(torch.cat(parts)[:-1].numpy())
    expected = np.stack(rows)
    for logits in logits_of(SMALL, batch):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


SHAPES: dict[str, dict[str, Any]] = {
    "deep": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4},
    "untied, biases": {"num_key_value_heads": 3, "head_dim": 10, "attention_bias": True, "mlp_bias": True},
    "tied, dropout": {
        "hidden_size": 96,
        "intermediate_size": 200,
        "tie_word_embeddings": True,
        "attention_dropout": 0.1,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("compute", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_activations_are_what_autograd_saves(shape: str, compute: str, itemsize: int) -> None:
    spec = changed(SMALL, **SHAPES[shape], dtype="float32", max_position_embeddings=64)
    model = torch_model.Model(spec, llama.weights(spec), compute)
    rows, length = 4, 64
    ids = np.random.default_rng(0).integers(0, 97, (rows, length), dtype=np.int32)
    batch = Batch({"input_ids": ids}, ids[:, 1:], np.ones((rows, length - 1)), 1.0, {})
    tensors = torch_model.tensors(batch)
    own = (*model.network.module.parameters(), *tensors.values())
    saved = bytes_saved(lambda: model.loss_sum(tensors, training=True), own)
    copies = itemsize * llama.product_elements(spec) if compute != "float32" else 0
    predicted = llama.activation_bytes(spec, rows, length, length - 1, itemsize) + copies
    assert predicted == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_what_pytorch_counts(shape: str) -> None:
    spec = changed(SMALL, **SHAPES[shape], max_position_embeddings=64)
    model, rows, length = torch_model.Model(spec, llama.weights(spec)), 2, 64
    ids = np.zeros((rows, length), np.int32)
    batch = Batch({"input_ids": ids}, ids[:, 1:], np.ones((rows, length - 1)), 1.0, {})
    # PyTorch does not count what its fused attention computes.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss_sum(torch_model.tensors(batch), training=True).backward()
    assert rows * llama.flops(spec, length, length - 1) == counter.get_total_flops()


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_products_alone_are_computed_in_16_bits(compute: str) -> None:
    spec = changed(SMALL, dtype="float32")
    batch, (exact, _) = batch_of(spec), models(spec)
    arrays = {n: (0.3 * a).astype(np.float32) for n, a in far_from_initial(llama.weights(spec)).items()}
    ours, theirs = models(spec, compute)
    for model in (exact, ours, theirs):
        model.write(arrays)
    check_products_in_16_bits(exact, ours, theirs, batch, compute)


@kinds
@pytest.mark.parametrize("version", [4, 5])
def test_a_folder_of_transformers_is_a_spec(kind: str, version: int, tmp_path: Path) -> None:
    spec = changed(SMALL, **KINDS[kind], vocab_size=300)
    filled(spec).save_pretrained(tmp_path)
    if version == 4:
        path = tmp_path / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
        path.write_text(json.dumps(config))
    raw = yaml.safe_load((PACKAGED_SPECS / "llama.yaml").read_text())
    data = {**raw["data"], "tokenizer_file": "tokenizer.json", "max_seq_length": 16}
    model = {"init_from": str(tmp_path), "dtype": "float64"}
    found = parse_spec(yaml.safe_dump({**raw, "model": model, "data": data})).model
    resolved = {"num_key_value_heads": spec.key_value_heads, "head_dim": spec.head_size}
    assert found == changed(spec, **resolved, init_from=str(tmp_path))
    table = llama.weights(spec)
    arrays = read_pretrained(tmp_path, table, llama.HEADS, "float64")
    for name, array in far_from_initial(table).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


@kinds
def test_the_angles_are_those_of_transformers(kind: str) -> None:
    spec = changed(SMALL, **KINDS[kind], max_position_embeddings=64)
    expected = hugging_face(spec).model.rotary_emb.inv_freq.double().numpy()
    cosines, sines = rope_table(spec.rope_parameters, spec.head_size, 64)
    found = np.exp(1j * np.arange(64)[:, None] * expected)
    np.testing.assert_allclose(cosines + 1j * sines, found, rtol=0, atol=64 * 1e-7)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_attention_heads": 5}, "hidden_size 24 is not a multiple of num_attention_heads 5"),
        ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
        ({"num_attention_heads": 8, "num_key_value_heads": None}, "a head has 3 elements"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_type linear needs factor"),
        ({"rope_parameters": {"factor": 2.0}}, "rope_type default has no factor"),
        (
            {"rope_parameters": {**KINDS["scaled frequencies"]["rope_parameters"], "low_freq_factor": 4.0}},
            "low_freq_factor 4.0 is not below high_freq_factor 4.0",
        ),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        changed(SMALL, **fields)
