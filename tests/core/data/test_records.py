"""Files of records: what other programs write is read back, and what is wrong has its file and row."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data import prepare, records
from hvdtrain.core.data.lines import Changed, hash_file
from hvdtrain.core.errors import DataError
from tests.core.data.rows import ROWS, TEXT, places, read, refused_whole, spec, written

datasets.disable_progress_bars()


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
