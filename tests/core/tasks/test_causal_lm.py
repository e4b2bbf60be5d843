"""Causal language modelling: its tokens, its blocks and its batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data.byte_level_bpe import SMALLEST, ByteLevelBPE, bpe_files
from hvdtrain.core.data.corpus import Corpus, Sequences
from hvdtrain.core.data.special_tokens import END_OF_TEXT
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.data.tokenizer import encoder
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks import causal_lm
from hvdtrain.core.tasks.causal_lm import CausalSplit, DataSpec, TaskSpec

END = 7
IDS = TokenIds(500, END, END, END, END, (END,))
TEXTS = [
    "The import system. Modules are found by finders.",
    "Äpfel, 漢字, हिन्दी and 🙂!",
    " spaces  kept\n",
] * 5
SCHEME = ByteLevelBPE()
documents = st.lists(st.lists(st.integers(8, 499), max_size=9), max_size=8)


@given(documents, st.integers(2, 7))
def test_packed_sequences_are_the_stream_of_documents_and_their_ends(
    docs: list[list[int]], length: int
) -> None:
    found = [*SCHEME.sequences(docs, length, True, IDS)]
    stream = [token for doc in docs if doc for token in (*doc, END)]
    rest = len(stream) % length
    # A last sequence of a single token has nothing to predict.
    assert [t for s in found for t in s] == (stream[:-1] if rest == 1 else stream)
    assert all(len(sequence) == length for sequence in found[:-1])
    assert all(1 < len(sequence) <= length for sequence in found)


@given(documents, st.integers(2, 7))
def test_without_packing_each_document_starts_a_sequence(docs: list[list[int]], length: int) -> None:
    found = [s.tolist() for s in SCHEME.sequences(docs, length, False, IDS)]
    expected = []
    for doc in filter(None, docs):
        whole = [*doc, END]
        parts = [whole[i : i + length] for i in range(0, len(whole), length)]
        expected += [part for part in parts if len(part) > 1]
    assert found == expected


def split(task: TaskSpec, *rows: list[int], length: int = 8) -> CausalSplit:
    tokens = np.array([token for row in rows for token in row], np.uint16)
    offsets = np.cumsum([0, *map(len, rows)])
    sequences = Sequences(tokens, offsets, np.arange(len(rows)))
    return CausalSplit(sequences, Corpus(sequences, sequences, Path(), IDS, length, ""), task)


ROWS = [10, 11, END, 12, 13, 14, END, 15], [20, 21, 22]


@pytest.mark.parametrize(("normalize", "weight"), [("token", 9.0), ("example", 2.0)])
def test_every_token_but_the_first_is_predicted(normalize: Any, weight: float) -> None:
    batch = split(TaskSpec(normalize=normalize), *ROWS).collate(np.array([0, 1]), 3, 4)
    ids, targets, weights = batch.inputs["input_ids"], batch.targets, batch.loss_weights
    assert ids.shape == (4, 8)
    assert targets.shape == weights.shape == (4, 7)
    np.testing.assert_array_equal(targets, ids[:, 1:])
    assert ids[0].tolist() == ROWS[0]
    assert ids[1].tolist() == [*ROWS[1], *[END] * 5]
    counts = np.array([7, 2, 0, 0])
    np.testing.assert_array_equal((weights > 0).sum(axis=1), counts)
    np.testing.assert_array_equal(weights > 0, np.arange(7) < counts[:, None])
    sums = counts if normalize == "token" else counts > 0
    np.testing.assert_allclose(weights.sum(axis=1), sums, rtol=1e-15)
    assert (batch.weight, batch.counts) == (weight, {"tokens": 11, "samples": 2})


def test_nothing_depends_on_the_epoch_or_on_other_rows() -> None:
    samples = split(TaskSpec(reset_position_ids=True, reset_attention_mask=True), *ROWS)
    alone, both = samples.collate(np.array([1]), 0, 1), samples.collate(np.array([0, 1]), 5, 2)
    for name, array in alone.arrays().items():
        np.testing.assert_array_equal(array[0], both.arrays()[name][1], err_msg=name)


@given(st.lists(st.sampled_from([END, 10, 11]), min_size=8, max_size=8))
def test_documents_are_numbered_and_positions_counted_in_them(row: list[int]) -> None:
    samples = split(TaskSpec(reset_position_ids=True, reset_attention_mask=True), row)
    inputs = samples.collate(np.array([0]), 0, 1).inputs
    number = place = 0
    for i, token in enumerate(row):
        assert (inputs["document_ids"][0, i], inputs["position_ids"][0, i]) == (number, place)
        number, place = (number + 1, 0) if token == END else (number, place + 1)


def test_inputs_that_are_not_asked_for_are_not_made() -> None:
    assert set(split(TaskSpec(), *ROWS).collate(np.array([0]), 0, 1).inputs) == {"input_ids"}


def test_training_gives_the_same_tokenizer_in_every_process() -> None:
    program = (
        "import json, sys\n"
        "from hvdtrain.core.data.byte_level_bpe import ByteLevelBPE\n"
        "print(ByteLevelBPE().train(lambda: json.loads(sys.argv[1]), 300).to_str())"
    )
    command = [sys.executable, "-c", program, json.dumps(TEXTS)]
    found = {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)}
    assert len(found) == 1


@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    if END_OF_TEXT in text:
        return
    tokenizer = SCHEME.train(lambda: TEXTS, 300)
    (ids,) = encoder(tokenizer)([text])
    assert tokenizer.decode(ids) == text.encode("utf-8", "replace").decode() or not text.isprintable()


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(DataError, match=r"vocab_size 256 is too small: .* give 257 or more"):
        SCHEME.train(lambda: TEXTS, SMALLEST - 1)


def test_both_libraries_open_the_tokenizer(tmp_path: Path) -> None:
    import keras_hub
    from transformers import AutoTokenizer

    tokenizer = SCHEME.train(lambda: TEXTS, 320)
    for name, content in bpe_files(tokenizer.to_str(), 64, SCHEME.token_ids(tokenizer, 320, "it")).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    theirs, keras = (
        AutoTokenizer.from_pretrained(tmp_path),
        keras_hub.tokenizers.GPT2Tokenizer.from_preset(str(tmp_path)),
    )
    assert (theirs.eos_token, theirs.bos_token, theirs.model_max_length) == (END_OF_TEXT, END_OF_TEXT, 64)
    for text in [*TEXTS[:3], "unseen: ß œ ⟨x⟩"]:
        (ids,) = encoder(tokenizer)([text])
        assert theirs(text)["input_ids"] == ids
        assert np.asarray(keras(text)).tolist() == ids


def test_sequences_longer_than_the_model_are_refused() -> None:
    data = DataSpec(corpus="python-docs", max_seq_length=65)
    with pytest.raises(ValueError, match=r"data.max_seq_length 65 exceeds model.n_positions 64"):
        causal_lm.check(SimpleNamespace(n_positions=64), data)
