"""What text classification says of bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from hvdtrain.core.data.batches import Dataset
from hvdtrain.core.errors import DataError, SpecError
from hvdtrain.core.spec.job_spec import parse_spec
from hvdtrain.core.tasks import text_classification
from hvdtrain.core.tasks.text_classification import DataSpec, TaskSpec
from tests.core.tasks.texts import FIELDS, model, prepare, rows, write


def test_classes_that_the_model_numbers_otherwise_are_refused(tmp_path: Path) -> None:
    data = DataSpec(files=(write(tmp_path, rows(9)),), cache_dir=str(tmp_path / "cache"))

    def prepare_for(names: dict[str, str], data: DataSpec = data) -> Dataset:
        (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
        found = model(init_from=str(tmp_path))
        return text_classification.prepare(found, data, TaskSpec(), 0, lambda line: None)

    with pytest.raises(DataError, match=r"order 'a', 'b', and .*'b', 'a': set data\.class_names: \[b, a\]"):
        prepare_for({"0": "b", "1": "a"})
    as_told = data.model_copy(update={"class_names": ("b", "a")})
    assert prepare_for({"0": "b", "1": "a"}, as_told).config["id2label"] == {"0": "b", "1": "a"}
    for names in ({"0": "a", "1": "b"}, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "a", "1": "b", "2": "c"}, {}):
        assert prepare_for(names).config["id2label"] == {"0": "a", "1": "b"}


GOOD = rows(3)
BAD: dict[str, tuple[str, str, dict[str, Any]]] = {
    "no label": ('{"text": "words"}\n', r"{file}:4: no field 'label' .*set data\.label_field", {}),
    "null": ('{"text": "words", "label": null}\n', "{file}:4: field 'label' should be .*, found null", {}),
    "blank label": ('{"text": "words", "label": " "}\n', "{file}:4: field 'label' .*found nothing", {}),
    "float": ('{"text": "words", "label": 1.5}\n', "{file}:4: field 'label' .*found float", {}),
    "boolean": ('{"text": "words", "label": true}\n', "{file}:4: field 'label' .*found bool", {}),
    "empty": ('{"text": " ", "label": "a"}\n', "{file}:4: field 'text' is empty", {}),
    "no text": ('{"words": "", "label": "a"}\n', r"{file}:4: no field 'text' .*set data\.text_field", {}),
    "no pair": (
        GOOD,
        r"{file}:1: no field 'other' .*set data\.text_pair_field",
        {"text_pair_field": "other"},
    ),
    "outside": (
        FIELDS % ("words", "c"),
        "{file}:4: label 'c' is none of the 2 classes 'a', 'b'",
        {"class_names": ("a", "b")},
    ),
    "too many": (
        FIELDS % ("words", "c"),
        r"3 classes \('a', 'b', 'c'\), and model\.num_labels is 2: set",
        {},
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_one_message_and_nothing_is_left(tmp_path: Path, name: str) -> None:
    line, message, fields = BAD[name]
    file = write(tmp_path, GOOD + line)
    with pytest.raises(DataError, match=message.format(file=re.escape(file))) as caught:
        prepare(tmp_path, files=(file,), **fields)
    assert "\n" not in str(caught.value)
    left = [path.name for path in (tmp_path / "cache").iterdir()]
    assert all(name.endswith((".lock", ".json")) for name in left), left


def test_a_label_that_training_lacks_is_told_with_its_place(tmp_path: Path) -> None:
    kept = write(tmp_path, rows(2) + FIELDS % ("words", "new"), "dev.jsonl")
    with pytest.raises(DataError, match=rf"{re.escape(kept)}:3: label 'new' is none of the 2 classes"):
        prepare(tmp_path, files=(write(tmp_path, rows(9)),), validation_files=(kept,))


def test_parquet_rows_are_told_by_their_number(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["words", "more"], "label": ["a", None]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: row 1: field 'label'"):
        prepare(tmp_path, files=(str(tmp_path / "train.parquet"),))


def spec(*lines: str) -> Any:
    return parse_spec(
        "model: {num_labels: 3, max_position_embeddings: 64}\n"
        "data: {corpus: python-docs, max_seq_length: 64}\n"
        "task: {type: text_classification}\n"
        "batch: {per_device_train_batch_size: 2}\nmax_steps: 2\n",
        lines,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.num_labels=null", r"model\.num_labels: required by the task text_classification"),
        ("model.num_labels=1", r"model\.num_labels"),
        ("data.class_names=[a, b]", r"data\.class_names has 2 names, and model\.num_labels is 3"),
        ("data.max_seq_length=65", r"data\.max_seq_length 65 exceeds"),
        ("data.text_pair_field=other", "python-docs has no pairs"),
        ("task.type=masked_lm", r"model\.num_labels 3: a model with a classifier does not predict tokens"),
        ("data.label_field=text", "must be different fields"),
        ("data.packing=true", r"data\.packing"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(change: str, message: str) -> None:
    spec()
    with pytest.raises(SpecError, match=message):
        spec(change)


def test_pairs_need_two_segment_types() -> None:
    files = ["data.corpus=null", "data.files=[a.csv]", "data.text_pair_field=b"]
    spec(*files)
    with pytest.raises(SpecError, match=r"model\.type_vocab_size is 1"):
        spec(*files, "model.type_vocab_size=1")
