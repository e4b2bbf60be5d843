"""A saved BERT means the same in Transformers and in KerasHub: hidden states, pooled output, token ids."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
    BertTokenizer,
)

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.model_folder import UNTRAINED_FILE, WEIGHTS_FILE, load_model, save_model
from hvdtrain.core.data import Batch
from hvdtrain.core.data.labels import Labels
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.data.tokenizer import encoder, token_ids, train_tokenizer
from hvdtrain.core.data.tokenizer_files import tokenizer_files
from hvdtrain.core.families import bert
from hvdtrain.core.families.bert import ModelSpec
from hvdtrain.core.families.weights import initial_weights
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.torch import model as torch_model
from tests.models.support import far_from_initial

TEXTS = [
    "Café, naïve Ünïcode! Škoda (don't) [stop]; $5.00 ~x~ “quotes” — a_b <c>",
    "中文字 mixed中文 文, 漢字。かな が ぎぐげご",
    "हिन्दी में मात्राएँ। ελληνικά ёлка 한국어",
]
# KerasHub's BERT has always the tanh GELU and an epsilon of 1e-12.
SPEC = ModelSpec(
    vocab_size=420,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    hidden_act="gelu_new",
    initializer_range=0.5,
)


def save(directory: Path, tokenizer: Tokenizer) -> str:
    """A model with large random weights; its folder."""
    arrays, untrained = (
        initial_weights(weights(SPEC), 1, "float32") for weights in (bert.weights, bert.untrained)
    )
    config = {**bert.hf_config(SPEC), "pad_token_id": 0}
    files = tokenizer_files(tokenizer.to_str(pretty=True), 64, token_ids(tokenizer, SPEC.vocab_size, "it"))
    streams = {WEIGHTS_FILE: ArrayStream.of(arrays), UNTRAINED_FILE: ArrayStream.of(untrained)}
    save_model(directory / "model", streams, config, files)
    return str(directory / "model")


def test_both_libraries_compute_the_same_from_a_saved_model(tmp_path: Path) -> None:
    folder = save(tmp_path, train_tokenizer(lambda: TEXTS * 2, SPEC.vocab_size))
    model, told = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    ids, mask = np.random.default_rng(0).integers(5, 420, (3, 20)), np.ones((3, 20), int)
    mask[1, 12:] = 0
    with torch.no_grad():
        expected = model.bert(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
        pooler = BertModel.from_pretrained(folder).pooler
        pooler.load_state_dict(
            {
                name.removeprefix("bert.pooler."): torch.from_numpy(array)
                for name, array in load_model(Path(folder), UNTRAINED_FILE).items()
            }
        )
        pooled = pooler(torch.from_numpy(expected)).numpy()
    backbone = keras_hub.models.BertBackbone.from_preset(folder)
    found = backbone({"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": mask})
    np.testing.assert_allclose(found["sequence_output"], expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(found["pooled_output"], pooled, rtol=0, atol=2e-5)
    assert np.abs(pooled).min() > 0.0


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
def test_both_libraries_give_the_token_ids_of_training(
    tmp_path: Path, lowercase: bool, strip_accents: bool
) -> None:
    # Stripping takes Korean syllables apart; KerasHub puts them together again.
    texts = [text.replace("한국어", "") for text in TEXTS] if strip_accents else TEXTS
    tokenizer = train_tokenizer(lambda: texts * 2, SPEC.vocab_size, lowercase, strip_accents)
    folder = save(tmp_path, tokenizer)
    expected = list(encoder(tokenizer)(texts))
    assert not any(tokenizer.token_to_id("[UNK]") in ids for ids in expected)
    for opened in (AutoTokenizer.from_pretrained(folder), BertTokenizer.from_pretrained(folder)):
        assert opened(texts, add_special_tokens=False)["input_ids"] == expected
    # Nothing in a folder can tell KerasHub to strip accents.
    told = {"strip_accents": True} if strip_accents else {}
    keras = keras_hub.tokenizers.BertTokenizer.from_preset(folder, **told)
    assert [np.asarray(keras(text)).tolist() for text in texts] == expected


def test_long_words_survive_saving(tmp_path: Path) -> None:
    texts = ["ab" * 200, "ก" * 300]
    tokenizer = train_tokenizer(lambda: texts * 2, SPEC.vocab_size)
    opened = AutoTokenizer.from_pretrained(save(tmp_path, tokenizer))
    assert opened(texts, add_special_tokens=False)["input_ids"] == list(encoder(tokenizer)(texts))
    assert opened.unk_token_id not in opened(texts[0])["input_ids"]


def test_tasks_of_keras_hub_take_text(tmp_path: Path) -> None:
    folder = save(tmp_path, train_tokenizer(lambda: TEXTS * 2, SPEC.vocab_size))
    classifier = keras_hub.models.BertTextClassifier.from_preset(folder, num_classes=3)
    assert classifier.predict(TEXTS, verbose=0).shape == (3, 3)
    masked = keras_hub.models.BertMaskedLM.from_preset(folder)
    assert masked.preprocessor.sequence_length == 64
    np.testing.assert_array_equal(
        masked.backbone.token_embedding.embeddings,
        load_model(Path(folder))["bert.embeddings.word_embeddings.weight"],
    )


CLASSIFIER = SPEC.model_copy(update={"num_labels": 3, "dtype": "float64"})


def save_classifier(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A classifier with its classes' names and a tokenizer, as a job saves it."""
    tokenizer = train_tokenizer(lambda: TEXTS * 2, SPEC.vocab_size)
    config = {**bert.hf_config(CLASSIFIER), **Labels(("no", "maybe", "yes")).config}
    ids = token_ids(tokenizer, SPEC.vocab_size, "the tokenizer")
    files = tokenizer_files(tokenizer.to_str(pretty=True), 64, ids)
    save_model(folder, {WEIGHTS_FILE: ArrayStream.of(arrays)}, config, files)
    return folder


def inputs() -> dict[str, np.ndarray]:
    ids, mask = np.random.default_rng(0).integers(5, 420, (3, 20)), np.ones((3, 20), int)
    mask[1, 12:] = 0
    return {"token_ids": ids, "segment_ids": (np.arange(20) > 7) * mask, "padding_mask": mask}


def test_a_classifier_opens_in_transformers_with_equal_logits(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model", far_from_initial(bert.weights(CLASSIFIER)))
    model, told = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float64
    )
    assert not any(told.values()), told
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    batch = [torch.from_numpy(array) for array in inputs().values()]
    with torch.no_grad():
        expected = model.eval()(batch[0], batch[2], token_type_ids=batch[1]).logits.numpy()
    for adapter in (torch_model, tensorflow_model):
        ours = adapter.Model(CLASSIFIER, bert.weights(CLASSIFIER))
        ours.write(load_model(folder))
        names = ("input_ids", "token_type_ids", "attention_mask")
        told_ = {name: array.astype(np.int32) for name, array in zip(names, inputs().values(), strict=True)}
        rows = Batch(told_, np.zeros((3, 1), np.int32), np.ones((3, 1)), 3.0, {})
        with torch.no_grad():
            found = np.asarray(ours.predict(adapter.tensors(rows)))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_a_classifier_opens_in_keras_hub_with_its_head_in_three_lines(tmp_path: Path) -> None:
    folder = str(save_classifier(tmp_path / "model", far_from_initial(bert.weights(CLASSIFIER))))
    # As docs/text-classification.md has it: KerasHub reads the encoder and the pooler, and draws the head.
    classifier = keras_hub.models.BertTextClassifier.from_preset(folder, num_classes=3, dtype="float64")
    with safe_open(f"{folder}/model.safetensors", "np") as weights:
        kernel, bias = weights.get_tensor("classifier.weight").T, weights.get_tensor("classifier.bias")
    classifier.output_dense.set_weights([kernel, bias])

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    batch = [torch.from_numpy(array) for array in inputs().values()]
    with torch.no_grad():
        expected = model.eval()(batch[0], batch[2], token_type_ids=batch[1]).logits.numpy()
    # KerasHub rounds constants of its GELU and of attention's scale to float32.
    np.testing.assert_allclose(classifier(inputs()), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert classifier.preprocessor.sequence_length == 64


def test_weights_are_the_same_bits_from_framework_to_framework(tmp_path: Path) -> None:
    arrays = far_from_initial(bert.weights(CLASSIFIER))
    folders = [save_classifier(tmp_path / "0", arrays)]
    for adapter in (torch_model, tensorflow_model, torch_model):
        model = adapter.Model(CLASSIFIER, bert.weights(CLASSIFIER))
        model.write(load_model(folders[-1]))
        folders.append(save_classifier(tmp_path / str(len(folders)), dict(model.read())))
    first, *others = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert others == [first] * 3


def vocabulary(tokens: dict[str, int], model: str = "WordPiece") -> list[str] | None:
    found = json.loads(train_tokenizer(lambda: TEXTS, 100).to_str())
    found["model"] |= {"type": model, "vocab": tokens}
    found["added_tokens"] = [{"content": "[NEW]", "id": 5}]
    files = tokenizer_files(json.dumps(found), 64, TokenIds(6, 5, 5, 5, 5, (5,)))
    config = json.loads(files["tokenizer_config.json"])
    assert ("vocab.txt" in files) == ("sentence_bert_config.json" in files)
    assert (config.get("do_lower_case") is True) == (model == "WordPiece")
    return files["vocab.txt"].split("\n") if "vocab.txt" in files else None


def test_a_vocabulary_has_a_line_for_each_id() -> None:
    found = vocabulary({"[PAD]": 0, "[UNK]": 1, "a": 4})
    assert found == ["[PAD]", "[UNK]", "[unused2]", "[unused3]", "a", "[NEW]", ""]


@pytest.mark.parametrize("token", ["a\nb", "a\u2028b", " a", "a ", "", "[unused2]"])
def test_a_vocabulary_that_lines_cannot_hold_is_left_out(token: str) -> None:
    assert vocabulary({"[PAD]": 0, "[UNK]": 1, token: 4}) is None


def test_another_kind_of_tokenizer_is_not_berts() -> None:
    assert vocabulary({"[UNK]": 0, "a": 1}, "WordLevel") is None
