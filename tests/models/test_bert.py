"""BERT's table of weights against Transformers and KerasHub, and the two models against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from hvdtrain.core.data import Batch
from hvdtrain.core.families import bert, family_of
from hvdtrain.core.families.bert import ModelSpec
from hvdtrain.core.families.bert_in_keras import keras_paths
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.core.tasks import text_classification
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import model as torch_model
from tests.models.support import as_hugging_face, bytes_saved, far_from_initial

SMALL = ModelSpec(
    vocab_size=97,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=16,
    type_vocab_size=2,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    initializer_range=0.3,  # large, so that attention and activations leave their linear ranges
    layer_norm_eps=1e-5,
    dtype="float64",
)
CLASSIFIER = SMALL.model_copy(update={"num_labels": 5})
HEADS = pytest.mark.parametrize("model", [SMALL, CLASSIFIER], ids=["masked_lm", "classifier"])


def hugging_face(model: ModelSpec) -> BertForMaskedLM | BertForSequenceClassification:
    """What Transformers builds from the `config.json` of a saved model."""
    kind = BertForMaskedLM if model.num_labels is None else BertForSequenceClassification
    return kind(BertConfig(**bert.hf_config(model))).eval()


def ragged_batch(model: ModelSpec) -> Batch:
    """Four rows of 12, 7, 3 and no real tokens; the last row and some predictions have weight 0."""
    random = np.random.default_rng(5)
    lengths, predictions, width, most = (12, 7, 3, 0), (4, 2, 1, 0), 12, 4
    tokens = np.zeros((4, width), np.int32)
    mask = np.zeros((4, width), np.int32)
    positions, labels = np.zeros((4, most), np.int32), np.zeros((4, most), np.int32)
    weights = np.zeros((4, most))
    for row, (length, count) in enumerate(zip(lengths, predictions, strict=True)):
        tokens[row, :length] = random.integers(5, model.vocab_size, length)
        mask[row, : length or width] = 1
        positions[row, :count] = np.sort(random.choice(length, count, replace=False)) if count else []
        labels[row, :count] = random.integers(5, model.vocab_size, count)
        weights[row, :count] = 1.0
    types = np.zeros_like(tokens)
    types[0, 6:] = 1
    inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": types}
    counts = {"tokens": sum(lengths), "samples": 3}
    return Batch(inputs | {"masked_positions": positions}, labels, weights, weights.sum(), counts)


def labelled_batch(model: ModelSpec) -> Batch:
    """The same four rows with a class each; the last has weight 0."""
    found = ragged_batch(model)
    inputs = {name: array for name, array in found.inputs.items() if name != "masked_positions"}
    targets = np.array([[3], [0], [4], [0]], np.int32)
    return Batch(inputs, targets, np.array([[1.0], [1.0], [1.0], [0.0]]), 3.0, found.counts)


@HEADS
def test_names_and_shapes_are_those_of_transformers(model: ModelSpec) -> None:
    theirs = {name: tuple(p.shape) for name, p in hugging_face(model).named_parameters()}
    assert {w.name: w.shape for w in bert.weights(model)} == theirs


def test_a_classifiers_weights_come_in_the_order_of_the_forward_pass() -> None:
    theirs = [name for name, _ in hugging_face(CLASSIFIER).named_parameters()]
    assert [w.name for w in bert.weights(CLASSIFIER)] == theirs
    # A pooler is trained, or written beside what is trained, and never both.
    names = [{w.name for w in weights(CLASSIFIER)} for weights in (bert.weights, bert.untrained)]
    assert not names[0] & names[1]
    assert {w.name for w in bert.untrained(SMALL)} <= names[0]


def test_only_tokens_that_were_met_have_a_gradient_in_a_classifier() -> None:
    lookups = {
        model.num_labels: [w.name for w in bert.weights(model) if w.lookup] for model in (SMALL, CLASSIFIER)
    }
    assert lookups == {None: [], 5: ["bert.embeddings.word_embeddings.weight"]}


def test_weights_come_in_the_order_of_the_forward_pass() -> None:
    theirs = [name for name, _ in hugging_face(SMALL).named_parameters()]
    # Transformers registers the head's bias before the transform that precedes it.
    bias = "cls.predictions.bias"
    ours = [w.name for w in bert.weights(SMALL)]
    assert [n for n in ours if n != bias] == [n for n in theirs if n != bias]
    assert ours[-1] == bias


def test_biases_and_layer_norms_alone_do_not_decay() -> None:
    for weight in bert.weights(SMALL):
        assert weight.decays == (len(weight.shape) == 2), weight.name
        assert weight.decays == (not weight.name.endswith("bias") and "LayerNorm" not in weight.name)


def test_a_model_starts_as_bert_does() -> None:
    arrays = initial_weights(bert.weights(SMALL.model_copy(update={"initializer_range": 0.02})), 0, "float32")
    for name, array in arrays.items():
        if "LayerNorm.weight" in name:
            assert (array == 1).all(), name
        elif name.endswith("bias"):
            assert (array == 0).all(), name
        else:
            assert abs(array.mean()) < 0.02 * 4 / np.sqrt(array.size), name
            assert abs(array.std() - 0.02) < 0.02 * 4 / np.sqrt(2 * array.size), name


def test_the_family_of_a_spec_is_found() -> None:
    assert family_of(SMALL) is bert


@HEADS
def test_the_table_covers_every_weight_of_keras_hub_but_an_unused_pooler_once(model: ModelSpec) -> None:
    network = tensorflow_model.Model(model, bert.weights(model)).network
    every = {v.path for v in [*network._backbone.variables, *network._head.variables]}
    paths = keras_paths(model)
    used = [path for parts in paths.values() for path in parts]
    assert len(set(used)) == len(used)
    assert paths.keys() == {w.name for w in bert.weights(model)}
    unused = set() if model.num_labels else {"pooled_dense/kernel", "pooled_dense/bias"}
    assert every - set(used) == unused
    assert set(used) <= every


@pytest.mark.parametrize("adapter", [torch_model, tensorflow_model], ids=["torch", "tensorflow"])
def test_a_model_gives_back_the_weights_it_was_given(adapter) -> None:  # type: ignore[no-untyped-def]
    model, arrays = adapter.Model(SMALL, bert.weights(SMALL)), far_from_initial(bert.weights(SMALL))
    model.write(arrays)
    found = dict(model.read())
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
        assert array.flags.c_contiguous
    found["cls.predictions.bias"][:] = 7.0
    np.testing.assert_array_equal(dict(model.read())["cls.predictions.bias"], arrays["cls.predictions.bias"])


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("training", [False, True])
def test_both_frameworks_compute_the_loss_of_transformers(activation: str, training: bool) -> None:
    spec = SMALL.model_copy(update={"hidden_act": activation})
    arrays, batch = far_from_initial(bert.weights(spec)), ragged_batch(spec)
    oracle = hugging_face(spec).double()
    oracle.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()}, strict=False)
    labels = np.full(batch.inputs["input_ids"].shape, -100)
    for row, column in zip(*np.nonzero(batch.loss_weights), strict=True):
        labels[row, batch.inputs["masked_positions"][row, column]] = batch.targets[row, column]
    with torch.no_grad():
        mean = oracle(
            input_ids=torch.from_numpy(batch.inputs["input_ids"]).long(),
            attention_mask=torch.from_numpy(batch.inputs["attention_mask"]).long(),
            token_type_ids=torch.from_numpy(batch.inputs["token_type_ids"]).long(),
            labels=torch.from_numpy(labels),
        ).loss
    expected = float(mean) * batch.weight

    ours = torch_model.Model(spec, bert.weights(spec))
    ours.write(arrays)
    theirs = tensorflow_model.Model(spec, bert.weights(spec))
    theirs.write(arrays)
    torch_loss = ours.loss_sum(torch_model.tensors(batch), training=training).item()
    tensorflow_loss = float(theirs.loss_sum(tensorflow_model.tensors(batch), training=training))
    assert torch_loss == pytest.approx(expected, rel=1e-13)
    assert tensorflow_loss == pytest.approx(torch_loss, rel=1e-13)


def test_both_frameworks_compute_the_logits_of_transformers() -> None:
    arrays, batch, table = (
        far_from_initial(bert.weights(CLASSIFIER)),
        labelled_batch(CLASSIFIER),
        bert.weights(CLASSIFIER),
    )
    oracle = hugging_face(CLASSIFIER).double()
    oracle.load_state_dict({n: torch.from_numpy(a) for n, a in arrays.items()})
    with torch.no_grad():
        expected = oracle(**{n: torch.from_numpy(a).long() for n, a in batch.inputs.items()}).logits.numpy()
    for adapter in (torch_model, tensorflow_model):
        model = adapter.Model(CLASSIFIER, table)
        model.write(arrays)
        found = np.asarray(model.predict(adapter.tensors(batch)))
        # The last row has no token that Transformers would look at.
        np.testing.assert_allclose(found[:3], expected[:3], rtol=0, atol=1e-13 * np.abs(expected).max())


def check_equal_gradients(spec: ModelSpec, batch: Batch) -> None:
    arrays, table = far_from_initial(bert.weights(spec)), bert.weights(spec)
    ours, theirs = torch_model.Model(spec, table), tensorflow_model.Model(spec, table)
    ours.write(arrays)
    theirs.write(arrays)
    ours.loss_sum(torch_model.tensors(batch), training=True).backward()
    with tf.GradientTape() as tape:
        loss = theirs.loss_sum(tensorflow_model.tensors(batch), training=True)
    found = tape.gradient(loss, theirs.parameters)
    for weight in table:
        torch_gradient = ours.parameters[weight.name].grad.numpy()
        tensorflow_gradient = as_hugging_face(weight, found[weight.name])
        scale = max(np.abs(torch_gradient).max(), 1e-3)
        np.testing.assert_allclose(
            tensorflow_gradient, torch_gradient, rtol=0, atol=1e-12 * scale, err_msg=weight.name
        )


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_both_frameworks_compute_the_same_gradients(activation: str) -> None:
    spec = SMALL.model_copy(update={"hidden_act": activation})
    check_equal_gradients(spec, ragged_batch(spec))


def test_both_frameworks_compute_the_same_gradients_of_a_classifier() -> None:
    check_equal_gradients(CLASSIFIER, labelled_batch(CLASSIFIER))


def test_padding_changes_nothing(tmp_path: Path) -> None:
    data = text_classification.DataSpec(corpus="python-docs", max_seq_length=64, cache_dir=str(tmp_path))
    spec = CLASSIFIER.model_copy(update={"num_labels": 8, "vocab_size": 512, "max_position_embeddings": 64})
    split: Any = text_classification.prepare(spec, data, text_classification.TaskSpec(), 0, print).train
    shortest = np.argsort(split.costs, kind="stable")
    table, arrays = bert.weights(spec), far_from_initial(bert.weights(spec))
    for rows in (shortest[:3], shortest[200:203]):
        narrow = split.collate(rows, 0, 4)
        width = narrow.inputs["input_ids"].shape[1]
        assert width < 64
        # [PAD] is 0, and rows beyond the data have an attention mask of ones.
        inputs = {name: np.pad(array, ((0, 0), (0, 64 - width))) for name, array in narrow.inputs.items()}
        inputs["attention_mask"][3:] = 1
        whole = replace(narrow, inputs=inputs)
        for adapter in (torch_model, tensorflow_model):
            model = adapter.Model(spec, table)
            model.write(arrays)
            with torch.no_grad():
                losses = [float(model.loss_sum(adapter.tensors(b), training=True)) for b in (narrow, whole)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_dropout_of_the_classifier_is_its_own_in_both_frameworks() -> None:
    for rate in (0.5, None):
        spec = CLASSIFIER.model_copy(update={"classifier_dropout": rate})
        arrays, batch = far_from_initial(bert.weights(spec)), labelled_batch(spec)
        for adapter in (torch_model, tensorflow_model):
            model = adapter.Model(spec, bert.weights(spec))
            model.write(arrays)
            tensors = adapter.tensors(batch)
            with torch.no_grad():
                features = [np.asarray(model.network.features(tensors, training=t)) for t in (True, False)]
            assert features[0].shape == (4, 1, spec.hidden_size)
            dropped = (features[0] == 0.0).mean()
            assert (0.3 < dropped < 0.7) if rate else dropped == 0.0
            kept = features[0] != 0.0
            np.testing.assert_allclose(
                features[0][kept] * (1.0 - (rate or 0.0)), features[1][kept], rtol=1e-12
            )


SHAPES = {
    "deep": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
    "untied, dropout": {
        "hidden_size": 96,
        "intermediate_size": 200,
        "tie_word_embeddings": False,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    },
    "classifier": {"hidden_size": 96, "num_hidden_layers": 1, "intermediate_size": 500, "num_labels": 7},
    "classifier, dropout": {
        "hidden_size": 96,
        "intermediate_size": 96,
        "num_labels": 300,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "classifier_dropout": 0.3,
    },
}


def uniform_batch(model: ModelSpec, rows: int, length: int) -> tuple[Batch, int]:
    """Rows of whole length, and how many predictions each has: for masked LM 9."""
    random, predictions = np.random.default_rng(0), 1 if model.num_labels else 9
    ids = random.integers(5, 64, (rows, length), dtype=np.int32)
    inputs = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    targets = random.integers(0, 7, (rows, predictions), dtype=np.int32)
    if not model.num_labels:
        inputs["masked_positions"] = random.integers(5, 64, targets.shape, dtype=np.int32)
    return Batch(inputs, targets, targets * 0 + 1.0, 1.0, {}), predictions


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("compute", "itemsize"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_activations_are_what_autograd_saves(shape: str, compute: str, itemsize: int) -> None:
    spec = ModelSpec(
        **SMALL.model_dump() | SHAPES[shape] | {"dtype": "float32", "max_position_embeddings": 64}
    )
    model = torch_model.Model(spec, bert.weights(spec), compute)
    rows, length = 4, 64
    batch, predictions = uniform_batch(spec, rows, length)
    tensors = torch_model.tensors(batch)
    own = (*model.network.module.parameters(), *tensors.values())
    saved = bytes_saved(lambda: model.loss_sum(tensors, training=True), own)
    copies = itemsize * bert.product_elements(spec) if compute != "float32" else 0
    predicted = bert.activation_bytes(spec, rows, length, predictions, itemsize) + copies
    assert predicted == pytest.approx(saved, rel=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_flops_are_what_pytorch_counts(shape: str) -> None:
    spec = ModelSpec(**SMALL.model_dump() | SHAPES[shape] | {"max_position_embeddings": 64})
    model, rows, length = torch_model.Model(spec, bert.weights(spec)), 2, 64
    batch, predictions = uniform_batch(spec, rows, length)
    with FlopCounterMode(display=False) as counter:
        model.loss_sum(torch_model.tensors(batch), training=True).backward()
    predicted = rows * bert.flops(spec, length, predictions)
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("head", ["tied", "untied", "classifier"])
def test_products_alone_are_computed_in_16_bits(compute: str, dropout: float, head: str) -> None:
    spec = SMALL.model_copy(
        update={
            "dtype": "float32",
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
            "tie_word_embeddings": head == "tied",
            "num_labels": 5 if head == "classifier" else None,
        }
    )
    table, batch = bert.weights(spec), (labelled_batch if spec.num_labels else ragged_batch)(spec)
    arrays = {n: (0.3 * a).astype(np.float32) for n, a in far_from_initial(bert.weights(spec)).items()}
    exact, ours = torch_model.Model(spec, table), torch_model.Model(spec, table, compute)
    theirs = tensorflow_model.Model(spec, table, compute)
    for model in (exact, ours, theirs):
        model.write(arrays)
    # Evaluation computes as training does.
    losses = [
        float(exact.loss_sum(torch_model.tensors(batch), training=False)),
        float(ours.loss_sum(torch_model.tensors(batch), training=False)),
        float(theirs.loss_sum(tensorflow_model.tensors(batch), training=False)),
    ]
    rounding = {"bfloat16": 2.0**-8, "float16": 2.0**-11}[compute]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=rounding)
    assert losses[0] not in losses[1:], "16 bits must be seen somewhere"
    in_16_bits = torch.tensor(losses[1:]).to(getattr(torch, compute)).tolist()
    assert not {*losses[1:]} & {*in_16_bits}, "the sum is taken in 32 bits"
    if dropout:
        return
    for model in (exact, ours):
        model.loss_sum(torch_model.tensors(batch), training=True).backward()
    with tf.GradientTape() as tape:
        loss = theirs.loss_sum(tensorflow_model.tensors(batch), training=True)
    found = tape.gradient(loss, theirs.parameters)
    for weight in table:
        expected = exact.parameters[weight.name].grad.numpy()
        ours_, theirs_ = ours.parameters[weight.name].grad, as_hugging_face(weight, found[weight.name])
        # Masters and their gradients stay in float32.
        assert (ours_.dtype, theirs_.dtype) == (torch.float32, np.float32)
        scale = max(float(np.linalg.norm(expected)), 1e-3)
        for gradient in (ours_.numpy(), theirs_):
            assert np.linalg.norm(gradient - expected) < 10 * rounding * scale, weight.name
