"""Text classification: its rows, its tokens and its batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer

from hvdtrain.core.data import python_parts as parts_module
from hvdtrain.core.data.batches import EVALUATION_EPOCH
from hvdtrain.core.data.labelled_text import Row
from hvdtrain.core.data.python_parts import python_parts
from hvdtrain.core.data.row_encoder import row_encoder
from hvdtrain.core.data.tokenizer_files import tokenizer_files
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.text_classification import widths
from tests.core.tasks.texts import (
    FIELDS,
    IDS,
    TOKENIZER,
    WORDS,
    labels_of,
    prepare,
    rows,
    texts,
    write,
)


def test_the_embedded_data_are_paragraphs_of_eight_parts_of_the_manual(tmp_path: Path) -> None:
    found = list(python_parts())
    paragraphs = [paragraph for _, paragraph, _ in found]
    assert len(set(paragraphs)) == len(paragraphs) > 1000
    counts = {part: sum(each == part for *_, each in found) for *_, part in found}
    assert len(counts) == 8
    assert min(counts.values()) >= 20
    dataset = prepare(tmp_path, 8, corpus="python-docs", validation_split=0.2)
    assert len(dataset.train) + len(dataset.validation) == len(found)
    assert dataset.config["id2label"] == {str(n): name for n, name in enumerate(sorted(counts))}


def test_other_topics_of_another_python_change_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    topics = {
        "if": 'The "if" statement\n\nThe if statement is used for execution under conditions.',
        "try": "The if statement is used for execution under conditions.\n \n"
        "A second paragraph about the try statement.",
        "for": "The same paragraph in two different parts is of neither.",
        "types": "The same paragraph in two different parts is of neither.",
        "brand-new": "A topic that is in no part gives no paragraphs.",
    }
    monkeypatch.setattr(parts_module, "python_topics", lambda: topics)
    assert list(python_parts()) == [
        ("if", "The if statement is used for execution under conditions.", "compound statements"),
        ("try", "A second paragraph about the try statement.", "compound statements"),
    ]
    # The packaged spec has as many classes all the same.
    assert len(prepare(tmp_path, 8, corpus="python-docs", validation_split=0.0).config["id2label"]) == 8


@given(st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=4), st.integers(8, 24))
def test_tokens_and_segments_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str | None]], length: int
) -> None:
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, content in tokenizer_files(TOKENIZER.to_str(), length, IDS).items():
        (folder / name).write_text(content, encoding="utf-8")
    opened = AutoTokenizer.from_pretrained(folder)
    encode = row_encoder(Tokenizer.from_str(TOKENIZER.to_str()), IDS, length, "the tokenizer")
    found = list(encode([Row("", text, pair, "a") for text, pair in pairs]))
    for (text, pair), encoded in zip(pairs, found, strict=True):
        expected = opened(
            text,
            pair,
            truncation="longest_first",
            max_length=length,
            return_token_type_ids=True,
            split_special_tokens=True,
        )
        assert encoded.tokens.tolist() == expected["input_ids"]
        segments = np.arange(len(encoded.tokens)) >= encoded.second_start
        assert segments.astype(int).tolist() == expected["token_type_ids"]


def test_a_tokenizer_that_adds_nothing_gets_what_berts_adds() -> None:
    bare = json.loads(TOKENIZER.to_str()) | {"post_processor": None}
    rows_ = [Row("", "the import", None, "a"), Row("", "the", "names bind", "a")]
    both = [
        [(e.tokens.tolist(), e.second_start) for e in row_encoder(each, IDS, 16, "it")(rows_)]
        for each in (Tokenizer.from_str(json.dumps(bare)), Tokenizer.from_str(TOKENIZER.to_str()))
    ]
    assert both[0] == both[1]


def test_the_tokenizers_own_post_processor_says_the_segments() -> None:
    own = Tokenizer.from_str(TOKENIZER.to_str())
    # RoBERTa's: two tokens between the texts, and one segment.
    own.post_processor = processors.RobertaProcessing(("[SEP]", IDS.sep), ("[CLS]", IDS.cls))
    (found,) = row_encoder(own, IDS, 16, "it")([Row("", "the", "names", "a")])
    assert found.tokens.tolist().count(IDS.sep) == 3
    assert found.second_start == len(found.tokens)
    other = Tokenizer.from_str(TOKENIZER.to_str())
    other.post_processor = processors.TemplateProcessing(
        single="[SEP] $A", pair="$A:1 [SEP]:0 $B:1", special_tokens=[("[SEP]", IDS.sep)]
    )
    with pytest.raises(DataError, match=r"it: its post-processor gives file:3 the segments \[1, 0, 1\]"):
        list(row_encoder(other, IDS, 16, "it")([Row("file:3", "the", "names", "a")]))


def test_widths_are_few() -> None:
    assert widths(8) == (8,)
    assert widths(16) == (16,)
    assert widths(100) == (16, 32, 64, 100)
    assert widths(128) == (16, 32, 64, 128)


def test_a_batch_is_as_wide_as_its_longest_text_needs(tmp_path: Path) -> None:
    long, short = "many words " * 30, "few words"
    content = "".join(FIELDS % (text, label) for text, label in [(short, "a"), (long, "b")] * 10)
    split = prepare(tmp_path, files=(write(tmp_path, content),), validation_split=0.0).train
    is_long = split.costs == split.costs.max()
    for rows_, width in ((np.flatnonzero(~is_long)[:3], 16), (np.arange(4), 32), (np.arange(0), 16)):
        batch = split.collate(rows_, EVALUATION_EPOCH, 5)
        assert {array.shape for array in batch.inputs.values()} == {(5, width)}
        count = len(rows_)
        mask = batch.inputs["attention_mask"]
        assert mask[:count].sum(axis=1).tolist() == split.costs[rows_].tolist()
        # A softmax over nothing is NaN.
        assert mask[count:].all()
        assert batch.loss_weights.ravel().tolist() == [1.0] * count + [0.0] * (5 - count)
        assert batch.weight == count
        assert batch.counts == {"tokens": split.costs[rows_].sum(), "samples": count}
        assert not batch.inputs["token_type_ids"].any()
        assert not batch.inputs["input_ids"][mask == 0].any()


def test_pairs_are_read_and_have_two_segments(tmp_path: Path) -> None:
    content = "a\tb\tlabel\n" + "".join(f"{WORDS[i % 9]}\t{WORDS[i % 7]} end\t{i % 2}\n" for i in range(20))
    fields: dict[str, Any] = {"text_field": "a", "text_pair_field": "b", "validation_split": 0.0}
    dataset = prepare(tmp_path, files=(write(tmp_path, content, "pairs.tsv"),), **fields)
    batch = dataset.train.collate(np.arange(2), 0, 3)
    tokenizer = Tokenizer.from_str(dataset.files["tokenizer.json"])
    for row in range(2):
        expected = tokenizer.encode(WORDS[row], f"{WORDS[row]} end")
        length = len(expected.ids)
        assert batch.inputs["input_ids"][row, :length].tolist() == expected.ids
        assert batch.inputs["token_type_ids"][row].tolist() == expected.type_ids + [0] * (16 - length)
    assert not batch.inputs["token_type_ids"][2].any()


def test_classes_are_numbered_as_the_data_or_the_spec_say(tmp_path: Path) -> None:
    numbers = "".join(json.dumps({"text": "words", "label": 10 - i % 3}) + "\n" for i in range(6))
    found = prepare(tmp_path, 3, files=(write(tmp_path, numbers),), validation_split=0.0)
    # As numbers: 10 comes behind 9.
    assert found.config["label2id"] == {"8": 0, "9": 1, "10": 2}
    assert labels_of(found.train) == [2, 1, 0] * 2
    given = prepare(
        tmp_path,
        3,
        files=(str(tmp_path / "train.jsonl"),),
        validation_split=0.0,
        class_names=("10", "8", "9"),
    )
    assert labels_of(given.train) == [0, 2, 1] * 2
    assert given.fingerprint != found.fingerprint
    more = prepare(
        tmp_path,
        4,
        files=(str(tmp_path / "train.jsonl"),),
        validation_split=0.0,
        class_names=("10", "8", "9", "x"),
    )
    assert labels_of(more.train) == labels_of(given.train)


def test_a_class_label_keeps_its_order(tmp_path: Path) -> None:
    names = ["positive", "negative"]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    data = datasets.Dataset.from_dict(
        {"text": ["good words", "bad words"] * 4, "label": [0, 1] * 4}, features
    )
    data.save_to_disk(tmp_path / "saved")
    found = prepare(tmp_path, files=(str(tmp_path / "saved"),), validation_split=0.0)
    assert found.config["id2label"] == {"0": "positive", "1": "negative"}
    assert labels_of(found.train) == [0, 1] * 4


def test_validation_files_have_the_classes_and_the_tokens_of_training(tmp_path: Path) -> None:
    train = write(tmp_path, rows(30))
    kept = write(tmp_path, "text,label\nthe import,b\nfinds modules,b\nzzz,a\n", "dev.csv")
    found = prepare(tmp_path, files=(train,), validation_files=(kept,))
    assert (len(found.train), len(found.validation)) == (30, 3)
    assert labels_of(found.validation) == [1, 1, 0]
    tokenizer = Tokenizer.from_str(found.files["tokenizer.json"])
    first = found.validation.collate(np.arange(1), 0, 1).inputs["input_ids"][0]
    expected = tokenizer.encode("the import").ids
    assert first[: len(expected)].tolist() == expected


def test_rows_are_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, rows(40))
    first = prepare(tmp_path, files=(file,), validation_split=0.5)
    monkeypatch.setattr("hvdtrain.core.data.labelled_corpus.row_encoder", None)
    again = prepare(tmp_path, files=(file,), validation_split=0.5)
    other = prepare(tmp_path, seed=1, files=(file,), validation_split=0.5)
    assert again.fingerprint == first.fingerprint != other.fingerprint
    assert labels_of(again.validation) == labels_of(first.validation)
    assert labels_of(first.train) != labels_of(other.train)
    # Another model needs no other tokens, and is told all the same.
    with pytest.raises(DataError, match=r"2 classes \('a', 'b'\), and model\.num_labels is 3"):
        prepare(tmp_path, 3, files=(file,))
