"""Parquet and Arrow files: what other programs write is read back, and what is wrong has its file and row."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from hvdtrain.core.data import prepare, records
from hvdtrain.core.errors import DataError
from tests.core.data.rows import TEXT, places, read, refused_whole, spec, written

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
