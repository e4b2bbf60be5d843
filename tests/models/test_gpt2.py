"""GPT-2's table of weights against Transformers, and its two networks against each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from hvdtrain.core.data import Batch
from hvdtrain.core.families import gpt2
from hvdtrain.core.families.gpt2 import ModelSpec
from hvdtrain.core.families.weights import initial_weights
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
    n_positions=16,
    n_embd=24,
    n_layer=2,
    n_head=3,
    n_inner=40,
    resid_pdrop=0.0,
    embd_pdrop=0.0,
    attn_pdrop=0.0,
    layer_norm_epsilon=1e-3,
    dtype="float64",
)


def hugging_face(model: ModelSpec) -> GPT2LMHeadModel:
    """What Transformers builds from the `config.json` of a saved model."""
    config = GPT2Config(**gpt2.hf_config(model), bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).to(getattr(torch, model.dtype)).eval()


def models(spec: ModelSpec, compute: str | None = None) -> tuple[torch_model.Model, tensorflow_model.Model]:
    table = gpt2.weights(spec)
    found = torch_model.Model(spec, table, compute), tensorflow_model.Model(spec, table, compute)
    arrays = {name: a.astype(spec.dtype) for name, a in far_from_initial(table).items()}
    for model in found:
        model.write(arrays)
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_the_table_is_that_of_transformers_in_the_order_of_the_forward_pass(tied: bool) -> None:
    spec = SMALL.model_copy(update={"tie_word_embeddings": tied})
    theirs = {name: tuple(p.shape) for name, p in hugging_face(spec).named_parameters()}
    assert [(w.name, w.shape) for w in gpt2.weights(spec)] == list(theirs.items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_gives_back_the_weights_it_was_given(tied: bool) -> None:
    spec = SMALL.model_copy(update={"tie_word_embeddings": tied})
    arrays = far_from_initial(gpt2.weights(spec))
    for model in models(spec):
        found = dict(model.read())
        assert found.keys() == arrays.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    every = [v for held in models(spec)[1].network.parameters.values() for v in held]
    assert sum(int(np.prod(v.shape)) for v in every) == sum(w.size for w in gpt2.weights(spec))


def test_projections_into_the_residual_stream_start_smaller() -> None:
    spec = SMALL.model_copy(update={"n_embd": 96, "n_layer": 8})
    arrays = initial_weights(gpt2.weights(spec), 0, "float64")
    for name, array in arrays.items():
        if name.endswith("c_proj.weight"):
            assert array.std() == pytest.approx(0.02 / math.sqrt(16), rel=0.05), name
        elif array.ndim == 2:
            assert array.std() == pytest.approx(0.02, rel=0.05), name
        else:
            assert set(array) == {1.0 if ".ln_" in name and name.endswith("weight") else 0.0}, name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_both_frameworks_compute_the_logits_of_transformers(activation: str, tied: bool) -> None:
    spec = SMALL.model_copy(update={"activation_function": activation, "tie_word_embeddings": tied})
    batch, (ours, theirs) = batch_of(spec), models(spec)
    oracle = hugging_face(spec)
    arrays = {n: torch.from_numpy(a) for n, a in far_from_initial(gpt2.weights(spec)).items()}
    oracle.load_state_dict(arrays, strict=False)
    with torch.no_grad():
        ids = torch.from_numpy(batch.inputs["input_ids"]).long()
        expected = oracle(input_ids=ids).logits[:, :-1].numpy()
        mine = ours.network.logits(ours.network.features(torch_model.tensors(batch), False)).numpy()
    found = theirs.network.logits(theirs.network.features(tensorflow_model.tensors(batch), False))
    for logits in (mine, found.numpy().reshape(expected.shape)):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("documents", [(), *((name,) for name in DOCUMENTS), DOCUMENTS], ids=" and ".join)
def test_both_frameworks_compute_the_same_loss_and_gradients(documents: tuple[str, ...]) -> None:
    batch, (ours, theirs) = batch_of(SMALL, documents), models(SMALL)
    loss = ours.loss_sum(torch_model.tensors(batch), training=True)
    loss.backward()
    with tf.GradientTape() as tape:
        theirs_loss = theirs.loss_sum(tensorflow_model.tensors(batch), training=True)
    assert float(theirs_loss) == pytest.approx(loss.item(), rel=1e-13)
    found = tape.gradient(theirs_loss, theirs.parameters)
    for weight in gpt2.weights(SMALL):
        expected = ours.parameters[weight.name].grad.numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        gradient = as_hugging_face(weight, found[weight.name])
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12 * scale, err_msg=weight.name)


def test_documents_in_one_row_do_not_see_each_other() -> None:
    batch, (ours, theirs) = batch_of(SMALL, DOCUMENTS), models(SMALL)
    alone = hugging_face(SMALL)
    alone.load_state_dict(
        {n: torch.from_numpy(a) for n, a in far_from_initial(gpt2.weights(SMALL)).items()}, strict=False
    )
    rows = []
    with torch.no_grad():
        for ids, border in zip(torch.from_numpy(batch.inputs["input_ids"]).long(), BORDERS, strict=True):
            parts = [alone(input_ids=part[None]).logits[0] for part in (ids[:border], ids[border:])]
            rows.append(torch.cat(parts)[:-1].numpy())
        mine = ours.network.logits(ours.network.features(torch_model.tensors(batch), False)).numpy()
    found = theirs.network.logits(theirs.network.features(tensorflow_model.tensors(batch), False))
    expected = np.stack(rows)
    for logits in (mine, found.numpy().reshape(expected.shape)):
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


SHAPES = {
    "deep": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_inner": None},
    "untied, dropout": {
        "n_embd": 96,
        "n_inner": 200,
        "tie_word_embeddings": False,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("compute", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_activations_are_what_autograd_saves(shape: str, compute: str, itemsize: int) -> None:
    spec = ModelSpec(**SMALL.model_dump() | SHAPES[shape] | {"dtype": "float32", "n_positions": 64})
    model = torch_model.Model(spec, gpt2.weights(spec), compute)
    rows, length = 4, 64
    ids = np.random.default_rng(0).integers(0, 97, (rows, length), dtype=np.int32)
    batch = Batch({"input_ids": ids}, ids[:, 1:], np.ones((rows, length - 1)), 1.0, {})
    tensors = torch_model.tensors(batch)
    own = (*model.network.module.parameters(), *tensors.values())
    saved = bytes_saved(lambda: model.loss_sum(tensors, training=True), own)
    copies = itemsize * gpt2.product_elements(spec) if compute != "float32" else 0
    predicted = gpt2.activation_bytes(spec, rows, length, length - 1, itemsize) + copies
    assert predicted == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_what_pytorch_counts(shape: str) -> None:
    spec = ModelSpec(**SMALL.model_dump() | SHAPES[shape] | {"n_positions": 64})
    model, rows, length = torch_model.Model(spec, gpt2.weights(spec)), 2, 64
    ids = np.zeros((rows, length), np.int32)
    batch = Batch({"input_ids": ids}, ids[:, 1:], np.ones((rows, length - 1)), 1.0, {})
    with FlopCounterMode(display=False) as counter:
        model.loss_sum(torch_model.tensors(batch), training=True).backward()
    predicted = rows * gpt2.flops(spec, length, length - 1)
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
def test_products_alone_are_computed_in_16_bits(compute: str) -> None:
    spec = SMALL.model_copy(update={"dtype": "float32"})
    batch, (exact, _) = batch_of(spec), models(spec)
    arrays = {n: (0.3 * a).astype(np.float32) for n, a in far_from_initial(gpt2.weights(spec)).items()}
    ours, theirs = models(spec, compute)
    for model in (exact, ours, theirs):
        model.write(arrays)
    check_products_in_16_bits(exact, ours, theirs, batch, compute)
