"""Files of records: CSV, TSV, JSON lines, Parquet and Arrow streams, one record at a time."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hvdtrain.core.data.lines import lines
from hvdtrain.core.errors import DataError

# A record of text is held whole while it is parsed: a line of JSON, a row of CSV with all its lines.
MAX_RECORD_CHARS = 64 << 20
# What the names of files of records end with.
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".arrow")
_SHOWN_FIELDS = 20

# A record's place, for errors, and its fields by name.
Record = tuple[str, dict[str, Any]]


def records(path: Path, fields: Mapping[str, str], digest: str | None = None) -> Iterator[Record]:
    """Every record of a file, in the file's order; memory stays bounded whatever its length.

    Args:
        path: a file whose name ends as one of `SUFFIXES`.
        fields: the columns to read, each with the field of the spec that names it, for errors, such as
            `{"sentence": "data.text_field"}`.
        digest: what the file's bytes must be (`lines.hash_file`); None: anything.

    Yields:
        Where the record is, and its value in each column. A text file's place is `FILE:LINE`, counted from
        1; that of Parquet and Arrow is `FILE: row N`, counted from 0. Values of `.csv` and `.tsv` are
        text; others are what the file has, None where it has null. Numbers of a Hugging Face ClassLabel are
        given as the names of their classes, -1 as None.

    Raises:
        DataError: the file is missing, unreadable, torn, lacks a column or is not what its name says; the
            message has its line or row where there is one.
        Changed: its bytes are not those of the digest.
    """
    if path.suffix in (".parquet", ".arrow"):
        from hvdtrain.core.data.arrow_files import arrow_records

        return arrow_records(path, fields, digest)
    return (_json_lines if path.suffix == ".jsonl" else _rows)(path, fields, digest)


def class_names(path: Path, field: str) -> tuple[str, ...] | None:
    """The names of a column's classes, in the order of their numbers; None where the file does not say them.

    Args:
        path: as that of `records`.
        field: the column.

    Raises:
        DataError: the file cannot be read.
    """
    if path.suffix not in (".parquet", ".arrow"):
        return None
    from hvdtrain.core.data.arrow_files import arrow_class_names

    return arrow_class_names(path, field)


def as_text(value: Any, field: str, where: str) -> str:
    """A record's value that must be text.

    Args:
        value: what `records` gave.
        field: its column.
        where: its place.

    Raises:
        DataError: it is null, no text, or text that no UTF-8 can hold.
    """
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise DataError(f"{where}: field {field!r} should be text, found {found}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {field!r} holds half a surrogate pair at character {error.start}"
        ) from None
    return value


def check_columns(fields: Mapping[str, str], found: Sequence[str], where: str, kind: str = "column") -> None:
    """Look for the columns that are asked for.

    Args:
        fields: as those of `records`.
        found: names of all that there are.
        where: their place.
        kind: what they are called.

    Raises:
        DataError: one is missing, or there twice.
    """
    for name, setting in fields.items():
        if name not in found:
            names = ", ".join(sorted(map(str, found))[:_SHOWN_FIELDS]) or "none"
            raise DataError(
                f"{where}: no {kind} {name!r} ({kind}s here: {names}); set {setting} to the right one"
            )
        if found.count(name) > 1:
            raise DataError(f"{where}: {kind} {name!r} is there more than once; rename all but one")


def _json_lines(path: Path, fields: Mapping[str, str], digest: str | None) -> Iterator[Record]:
    for number, line in lines(path, MAX_RECORD_CHARS + 1, digest):
        where = f"{path}:{number}"
        if len(line) > MAX_RECORD_CHARS:
            raise DataError(f"{where}: line above {MAX_RECORD_CHARS >> 20} Mi characters; split it")
        if not line.isspace():
            record = _parsed(line, where)
            check_columns(fields, list(record), where, "field")
            yield where, {name: record[name] for name in fields}


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    return record


def _rows(path: Path, fields: Mapping[str, str], digest: str | None) -> Iterator[Record]:
    """The records of a file with a header row; lines that are blank are passed over."""
    text = _Lines(path, digest)
    # Rows are bounded by `_Lines`; this module-wide limit only has to allow them.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_RECORD_CHARS))
    # Files of tasks such as GLUE's have quotes that are part of the text, in TSV.
    tabs = path.suffix == ".tsv"
    reader = (
        csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(text, strict=True)
    )
    header: list[str] | None = None
    while (row := _next(reader, text)) is not None:
        where = f"{path}:{text.first}"
        if header is None:
            header = row
            check_columns(fields, header, where)
            places = {name: header.index(name) for name in fields}
        elif len(row) != len(header):
            why = (
                "a quote has no meaning in a .tsv, so a field holds neither a tab nor the end of a line"
                if tabs
                else 'a field with a comma, a quote or the end of a line needs "quotes" around it'
            )
            raise DataError(f"{where}: {len(row)} field(s), and the header has {len(header)}; {why}")
        else:
            yield where, {name: row[place] for name, place in places.items()}
    if header is None:
        raise DataError(f"{path}: empty; expected a header row with the names of columns")


def _next(reader: Any, text: _Lines) -> list[str] | None:
    """The next row that is not blank; None at the end."""
    row: list[str] = []
    while not row:
        text.first = text.number + 1
        text.size = 0
        try:
            row = next(reader)
        except StopIteration:
            return None
        except csv.Error as error:
            told = "a quote is never closed" if "end of data" in str(error) else str(error)
            raise DataError(
                f"{text.path}:{text.first}: not CSV: {told} (a quote inside quotes is written twice)"
            ) from None
    return row


class _Lines:
    """The lines of a row, as long as they are not too many.

    Attributes:
        path: the file.
        number: of the last line that was read, from 1.
        first: number of the row's first line.
        size: characters of the row so far.
    """

    def __init__(self, path: Path, digest: str | None) -> None:
        self.path = path
        self.number, self.first, self.size = 0, 1, 0
        # A field may hold any end of a line.
        self._lines = lines(path, MAX_RECORD_CHARS + 1, digest, newline="")

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        self.size += len(line)
        if self.size > MAX_RECORD_CHARS:
            raise DataError(
                f"{self.path}:{self.first}: row above {MAX_RECORD_CHARS >> 20} Mi characters; split it, or "
                "close its quote"
            )
        return line
