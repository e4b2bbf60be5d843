"""Files of records: what other programs write is read back, and what is wrong has its file and row."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from hvdtrain.core.data import prepare, records
from hvdtrain.core.data.lines import Changed, hash_file
from hvdtrain.core.data.records import class_names
from hvdtrain.core.data.sources import source_files, validation_files
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec

datasets.disable_progress_bars()

FIELDS = {"text": "data.text_field", "label": "data.label_field"}
NAMES = ["negative", "positive", "neutral"]
# No NUL, which is told as a sign of UTF-16 in text files.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=12)


def read(path: Path, fields: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
    return [tuple(values.values()) for _, values in records.records(path, fields or FIELDS)]


def places(path: Path) -> list[str]:
    return [where.removeprefix(str(path)) for where, _ in records.records(path, FIELDS)]


class TestText:
    @given(ROWS, st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]), st.booleans())
    def test_what_pythons_csv_writes_is_read(self, rows: list[Any], quoting: Any, mark: bool) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "a.csv")
            with path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as file:
                csv.writer(file, quoting=quoting).writerows([("text", "label"), *rows])
            assert read(path) == rows
            assert read(path, {"label": ""}) == [(label,) for _, label in rows]

    @given(st.lists(st.tuples(*[TEXT.filter(lambda text: not set(text) & set("\t\r\n"))] * 2), max_size=12))
    def test_quotes_of_a_tsv_are_text(self, rows: list[Any]) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "a.tsv")
            lines = ["\t".join(row) + "\n" for row in [("text", "label"), *rows]]
            path.write_text("".join(lines), newline="", encoding="utf-8")
            assert read(path) == rows

    @given(st.lists(st.fixed_dictionaries({"text": TEXT, "label": TEXT | st.none() | st.integers()})))
    def test_json_lines_are_read(self, rows: list[Any]) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "a.jsonl")
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            assert read(path) == [(row["text"], row["label"]) for row in rows]

    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
    def test_rows_are_numbered_by_their_first_lines(self, tmp_path: Path, end: str) -> None:
        path = tmp_path / "a.csv"
        rows = ["text,label", "", '"two', 'lines",1', "one,2", "", '"a ""word""",3', ""]
        path.write_bytes(end.join(rows).encode())
        assert places(path) == [":3", ":5", ":7"]
        assert read(path) == [(f"two{end}lines", "1"), ("one", "2"), ('a "word"', "3")]

    def test_columns_are_found_by_name(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("label,id,text\n1,2,three\n")
        assert read(tmp_path / "a.csv") == [("three", "1")]

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("", r": empty; expected a header row"),
            ("\n\n", r": empty; expected a header row"),
            ("label,note\n", r":1: no column 'text' \(columns here: label, note\); set data\.text_field"),
            ("text,label,text\n", r":1: column 'text' is there more than once"),
            ("text,label\na,1\nb\n", r":3: 1 field\(s\), and the header has 2; .*needs \"quotes\" around it"),
            ("text,label\na,b,1\n", r":2: 3 field\(s\), and the header has 2"),
            ('text,label\na,1\n"b,2\nc,3\n', r":3: not CSV: a quote is never closed"),
            ('text,label\n"a"b,1\n', r":2: not CSV: ',' expected after '\"' \(a quote inside quotes"),
            ("text,label\na,1\nb\0,2\n", r":3: NUL at column 2: not text, or UTF-16"),
            ("text,label\na,1\nb\udcff,2\n", r":3: not UTF-8: byte 0xff at column 2"),
        ],
    )
    def test_bad_csv_is_named(self, tmp_path: Path, content: str, told: str) -> None:
        path = tmp_path / "a.csv"
        path.write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(DataError, match=r"a\.csv" + told):
            read(path)
        refused_whole(tmp_path, path)

    def test_torn_row_of_a_tsv_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tsv"
        path.write_text('text\tlabel\n"quoted"\t1\n"two\tfields"\t2\n')
        with pytest.raises(DataError, match=r"a\.tsv:3: 3 field\(s\), .*a quote has no meaning in a \.tsv"):
            read(path)

    @pytest.mark.parametrize("row", ["x" * 5000, '"' + "line\n" * 1000 + '"', '"' + "line\n" * 1000])
    def test_row_too_long_for_memory_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
    ) -> None:
        monkeypatch.setattr(records, "MAX_RECORD_CHARS", 4096)
        (tmp_path / "a.csv").write_text(f"text,label\nfine,1\n{row},2\n")
        with pytest.raises(DataError, match=r"a\.csv:3: row above .* close its quote"):
            read(tmp_path / "a.csv")

    def test_fields_above_pythons_own_limit_are_read(self, tmp_path: Path) -> None:
        long = "word " * 100_000
        (tmp_path / "a.csv").write_text(f"text,label\n{long},1\n")
        assert read(tmp_path / "a.csv") == [(long, "1")]

    @pytest.mark.parametrize(("value", "found"), [("null", "null"), ("5", "int"), ("[]", "list")])
    def test_what_is_no_text_is_named(self, tmp_path: Path, value: str, found: str) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": ' + value + "}\n")
        with pytest.raises(DataError, match=rf"a\.jsonl:2: field 'text' should be text, found {found}"):
            prepare(spec(tmp_path / "a.jsonl"), 100, 0)


def spec(*files: Path, **more: Any) -> DataSpec:
    return DataSpec(files=tuple(map(str, files)), cache_dir=str(files[0].parent / "cache"), **more)


def refused_whole(folder: Path, path: Path) -> None:
    """The file is refused when it is prepared, and nothing half-written stays."""
    with pytest.raises(DataError):
        prepare(spec(path), 100, 0)
    cache = folder / "cache"
    assert {file.suffix for file in (cache.iterdir() if cache.exists() else ())} <= {".lock", ".json"}


# Whatever Arrow holds as text.
KINDS = st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])


class TestArrow:
    @settings(deadline=None)
    @given(st.lists(st.tuples(TEXT | st.none(), st.integers(-5, 5) | st.none())), KINDS, st.integers(1, 7))
    def test_what_arrow_writes_is_read(self, rows: list[Any], kind: Any, size: int) -> None:
        texts, labels = ([row[i] for row in rows] for i in (0, 1))
        table = pa.table(
            {"other": pa.nulls(len(rows)), "label": labels, "text": pa.array(texts, pa.string()).cast(kind)}
        )
        with TemporaryDirectory() as folder:
            path, stream = Path(folder, "a.parquet"), Path(folder, "a.arrow")
            parquet.write_table(table, path, row_group_size=size)
            with pa.ipc.new_stream(str(stream), table.schema) as writer:
                writer.write_table(table, max_chunksize=size)
            assert read(path) == read(stream) == rows
            assert places(path) == places(stream) == [f": row {i}" for i in range(len(rows))]

    @pytest.mark.parametrize("ending", ["parquet", "arrow"])
    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path, ending: str) -> None:
        rows = 100_000
        numbers = random.Random(0)
        table = pa.table({"text": [f"{numbers.random()} {'of a long text ' * 20}{i}" for i in range(rows)]})
        path = tmp_path / f"a.{ending}"
        if ending == "parquet":
            parquet.write_table(table, path, row_group_size=rows, use_dictionary=False, compression="none")
        else:
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=1000)
        del table
        assert path.stat().st_size > 30_000_000
        before, most, count = pa.total_allocated_bytes(), 0, 0
        for count, _ in enumerate(records.records(path, {"text": "data.text_field"}), 1):
            if count % 500 == 0:
                most = max(most, pa.total_allocated_bytes() - before)
        assert count == rows
        assert most < 5_000_000

    @pytest.mark.parametrize("ending", ["parquet", "arrow"])
    def test_bad_files_are_named(self, tmp_path: Path, ending: str) -> None:
        whole = written(tmp_path / f"a.{ending}", pa.table({"text": ["some text"] * 3000}), 100)
        for name, content, told in (
            ("empty", b"", "not (a Parquet file|an Arrow stream), or damaged"),
            ("other", b"text,label\na,1\n" * 9, "not (a Parquet file|an Arrow stream), or damaged"),
            ("half", whole[: len(whole) // 2], "or damaged"),
            ("cut", whole[:-8], "or damaged|a torn Arrow stream: it has no mark at its end"),
        ):
            path = tmp_path / f"{name}.{ending}"
            path.write_bytes(content)
            with pytest.raises(DataError, match=rf"{name}\.{ending}: .*({told})"):
                read(path, {"text": ""})
            refused_whole(tmp_path, path)
        with pytest.raises(DataError, match=rf"none\.{ending}: cannot be read: No such file or directory$"):
            read(tmp_path / f"none.{ending}")
        with pytest.raises(
            DataError, match=r"no column 'label' \(columns here: text\); set data\.label_field"
        ):
            read(tmp_path / f"a.{ending}")

    def test_a_stream_cut_between_two_batches_is_torn(self, tmp_path: Path) -> None:
        table = pa.table({"text": ["some text"] * 300})
        whole = written(tmp_path / "a.arrow", table, 100)
        # A shorter stream without its end is what a longer one begins with.
        start = written(tmp_path / "b.arrow", table.slice(0, 200), 100)[:-8]
        assert whole.startswith(start)
        (tmp_path / "c.arrow").write_bytes(start)
        with pytest.raises(DataError, match=r"c\.arrow: a torn Arrow stream"):
            read(tmp_path / "c.arrow", {"text": ""})

    @pytest.mark.parametrize("ending", ["parquet", "arrow"])
    def test_damage_is_an_error_or_harmless(self, tmp_path: Path, ending: str) -> None:
        table = pa.table({"text": [f"some text {i}" for i in range(300)]})
        whole = written(tmp_path / f"a.{ending}", table, 100)
        numbers, path = random.Random(0), tmp_path / f"b.{ending}"
        for turn in range(200):
            content = bytearray(whole)
            for _ in range(numbers.randrange(1, 4)):
                content[numbers.randrange(len(content))] = numbers.randrange(256)
            if turn == 0:
                # The name of the column.
                content = bytearray(whole.replace(b"text", b"te\xfft"))
            path.write_bytes(content)
            try:
                read(path, {"text": ""})
            except DataError as error:
                assert "\n" not in str(error)

    @pytest.mark.parametrize("ending", ["parquet", "arrow"])
    def test_text_that_is_not_utf8_has_its_row(self, tmp_path: Path, ending: str) -> None:
        binary = pa.array([b"fine"] * 300 + [b"caf\xe9"])
        text = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())
        path = tmp_path / f"a.{ending}"
        written(path, pa.table({"text": text}), 100)
        with pytest.raises(DataError, match=r": row 300: column 'text' is not UTF-8: .* at byte 3"):
            read(path, {"text": ""})

    @pytest.mark.parametrize(
        ("values", "found"), [(["a", None], "null"), ([1, 2], "int"), ([b"", b""], "bytes")]
    )
    def test_what_is_no_text_is_named(self, tmp_path: Path, values: list[Any], found: str) -> None:
        written(tmp_path / "a.parquet", pa.table({"text": values}), 1)
        row = 1 if found == "null" else 0
        with pytest.raises(DataError, match=rf"row {row}: field 'text' should be text, found {found}"):
            prepare(spec(tmp_path / "a.parquet"), 100, 0)


def written(path: Path, table: Any, rows: int) -> bytes:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=rows)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path.read_bytes()


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


def change(folder: Path, **more: Any) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **more}))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet", "arrow"])
def test_a_file_that_has_changed_is_noticed_in_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"

    def write(texts: list[str]) -> None:
        if ending in ("parquet", "arrow"):
            written(path, pa.table({"text": texts}), 10)
        elif ending == "jsonl":
            path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        else:
            path.write_text("\n".join(["text", *texts]))

    write(["one", "two"])
    digest = hash_file(path)
    assert [values["text"] for _, values in records.records(path, {"text": ""}, digest)] == ["one", "two"]
    write(["one", "six"])
    with pytest.raises(Changed, match=rf"a\.{ending}: changed while it was read"):
        list(records.records(path, {"text": ""}, digest))


def test_every_format_gives_the_same_tokens(tmp_path: Path) -> None:
    texts = [f'Text {i}, with "quotes" and {"more " * (i % 5)}words' for i in range(40)]
    for name in ("a.csv", "a.tsv"):
        sheet = io.StringIO(newline="")
        options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None}
        csv.writer(sheet, **(options if name == "a.tsv" else {})).writerows([["text"], *([t] for t in texts)])
        (tmp_path / name).write_text(sheet.getvalue(), newline="")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    table = pa.table({"text": texts})
    for name in ("a.parquet", "a.arrow"):
        written(tmp_path / name, table, 7)
    datasets.Dataset(table).save_to_disk(tmp_path / "set", num_shards=3)
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    names = ("a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.arrow", "set")
    assert len({prepare(spec(tmp_path / name), 200, 0).fingerprint for name in names}) == 1
