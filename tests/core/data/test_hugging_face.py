"""Folders that Hugging Face's datasets library has saved."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from hvdtrain.core.data import prepare
from hvdtrain.core.data.records import class_names
from hvdtrain.core.data.sources import source_files, validation_files
from hvdtrain.core.errors import DataError
from tests.core.data.rows import NAMES, change, read, refused_whole, spec


def labelled(count: int = 20, seed: int = 0) -> datasets.Dataset:
    numbers = random.Random(seed)
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=NAMES),
            "id": datasets.Value("int32"),
        }
    )
    return datasets.Dataset.from_dict(
        {
            "text": [f"text {numbers.random()}" for _ in range(count)],
            "label": [numbers.randrange(-1, 3) for _ in range(count)],
            "id": [*range(count)],
        },
        features=features,
    )


def expected(found: datasets.Dataset) -> list[tuple[str, str | None]]:
    return [(row["text"], None if row["label"] < 0 else NAMES[row["label"]]) for row in found]


def all_rows(files: tuple[Path, ...]) -> list[tuple[Any, ...]]:
    return [row for path in files for row in read(path)]


class TestHuggingFace:
    @pytest.mark.parametrize("shards", [1, 12])
    def test_rows_of_a_data_set_are_those_of_its_library(self, tmp_path: Path, shards: int) -> None:
        labelled().save_to_disk(tmp_path / "set", num_shards=shards)
        files = source_files(spec(tmp_path / "set"))
        assert len(files) == shards
        assert all_rows(files) == expected(datasets.load_from_disk(tmp_path / "set"))
        assert {class_names(path, "label") for path in files} == {tuple(NAMES)}
        assert {class_names(path, "text") for path in files} == {None}
        assert validation_files(spec(tmp_path / "set")) == ()

    def test_parquet_knows_its_classes(self, tmp_path: Path) -> None:
        found = labelled()
        found.to_parquet(tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet") == expected(found)
        assert class_names(tmp_path / "a.parquet", "label") == tuple(NAMES)

    def test_filtered_and_shuffled_rows_are_read_in_their_order(self, tmp_path: Path) -> None:
        found = labelled(50).filter(lambda row: row["label"] >= 0).shuffle(seed=3)
        found.save_to_disk(tmp_path / "set", num_shards=2)
        assert all_rows(source_files(spec(tmp_path / "set"))) == expected(found)

    @pytest.mark.parametrize(
        ("names", "chosen"), [(["train", "validation", "test"], "validation"), (["test", "train"], "test")]
    )
    def test_splits(self, tmp_path: Path, names: list[str], chosen: str) -> None:
        splits = {name: labelled(10, seed) for seed, name in enumerate(names)}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
        data = spec(tmp_path / "set")
        assert all_rows(source_files(data)) == expected(splits["train"])
        assert all_rows(validation_files(data)) == expected(splits[chosen])
        # The spec says otherwise.
        assert validation_files(spec(tmp_path / "set", validation_split=0.1)) == ()
        assert validation_files(spec(tmp_path / "set", validation_split=0.0)) == ()
        test = spec(tmp_path / "set", validation_files=(str(tmp_path / "set" / "test"),))
        assert all_rows(validation_files(test)) == expected(splits["test"])
        corpus = prepare(spec(tmp_path / "set", packing=False), 300, 0)
        assert (len(corpus.train), len(corpus.validation)) == (10, 10)

    def test_a_training_split_alone_has_no_validation(self, tmp_path: Path) -> None:
        datasets.DatasetDict(train=labelled()).save_to_disk(tmp_path / "set")
        assert validation_files(spec(tmp_path / "set")) == ()

    @pytest.mark.parametrize(
        ("harm", "told"),
        [
            (lambda s: (s / "data-00001-of-00002.arrow").unlink(), "data-00001-of-00002.arrow is missing"),
            (lambda s: (s / "state.json").unlink(), "no data set that save_to_disk .* write DIR/"),
            (lambda s: (s / "state.json").write_text("{"), r"state\.json: not JSON"),
            (
                lambda s: (s / "state.json").write_text("[]"),
                r"state\.json: expected a JSON object, found list",
            ),
            (lambda s: (s / "state.json").write_text("{}"), r"state\.json: expected _data_files"),
            (lambda s: change(s, _data_files=[]), "has no rows"),
            (lambda s: change(s, _data_files=[{"filename": "../a.arrow"}]), "expected _data_files"),
            (
                lambda s: change(s, _indices_files=[{"filename": "i.arrow"}]),
                r"indices; .*flatten_indices\(\)",
            ),
            (lambda s: (s / "dataset_dict.json").write_text('{"splits": ["test"]}'), "no split train .*test"),
            (lambda s: (s / "dataset_dict.json").write_text('{"splits": 3}'), r"expected splits: \[names\]"),
        ],
    )
    def test_a_folder_that_is_something_else_is_refused(
        self, tmp_path: Path, harm: Callable[[Path], object], told: str
    ) -> None:
        labelled().save_to_disk(tmp_path / "set", num_shards=2)
        harm(tmp_path / "set")
        with pytest.raises(DataError, match=rf"data\.files: .*set.*{told}"):
            source_files(spec(tmp_path / "set"))
        refused_whole(tmp_path, tmp_path / "set")

    def test_classes_that_contradict_each_other_are_refused(self, tmp_path: Path) -> None:
        labelled().save_to_disk(tmp_path / "set")
        info = tmp_path / "set" / "dataset_info.json"
        info.write_text(info.read_text().replace("neutral", "none"))
        (path,) = source_files(spec(tmp_path / "set"))
        with pytest.raises(
            DataError, match=r"the classes of 'label' are .*neutral.*none.*dataset_info\.json"
        ):
            read(path)

    def test_a_number_that_is_no_class_is_named(self, tmp_path: Path) -> None:
        found = labelled().data.table
        wrong = found.set_column(1, found.schema.field("label"), pa.array([1] * 7 + [5] * 13, pa.int64()))
        parquet.write_table(wrong, tmp_path / "a.parquet")
        with pytest.raises(
            DataError, match=r"a\.parquet: row 7: column 'label': 5 is no class; expected 0 to 2"
        ):
            read(tmp_path / "a.parquet")
