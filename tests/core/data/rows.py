"""Records that tests write and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from pyarrow import parquet

from hvdtrain.core.data import prepare, records
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec

FIELDS = {"text": "data.text_field", "label": "data.label_field"}
NAMES = ["negative", "positive", "neutral"]
# No NUL, which is told as a sign of UTF-16 in text files.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=12)


def read(path: Path, fields: dict[str, str] | None = None) -> list[tuple[Any, ...]]:
    return [tuple(values.values()) for _, values in records.records(path, fields or FIELDS)]


def places(path: Path) -> list[str]:
    return [where.removeprefix(str(path)) for where, _ in records.records(path, FIELDS)]


def spec(*files: Path, **more: Any) -> DataSpec:
    return DataSpec(files=tuple(map(str, files)), cache_dir=str(files[0].parent / "cache"), **more)


def refused_whole(folder: Path, path: Path) -> None:
    """The file is refused when it is prepared, and nothing half-written stays."""
    with pytest.raises(DataError):
        prepare(spec(path), 100, 0)
    cache = folder / "cache"
    assert {file.suffix for file in (cache.iterdir() if cache.exists() else ())} <= {".lock", ".json"}


def written(path: Path, table: Any, rows: int) -> bytes:
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=rows)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path.read_bytes()


def change(folder: Path, **more: Any) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, **more}))
