"""Parquet files and Arrow streams, one batch of rows at a time; Hugging Face's `datasets` writes both."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvdtrain.core.data.lines import check_digest, hash_file, unreadable
from hvdtrain.core.data.records import Record, check_columns
from hvdtrain.core.errors import DataError

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema

# Rows that are Python's objects at once.
_ROWS = 256
_READ_BYTES = 1 << 20
# What ends a stream of the Arrow IPC format.
_END = bytes.fromhex("ffffffff00000000")


def arrow_records(path: Path, fields: Mapping[str, str], digest: str | None) -> Iterator[Record]:
    """As `records`, of a `.parquet` or an `.arrow` file."""
    with _open(path) as (schema, batches):
        check_columns(fields, schema.names, str(path))
        names = {name: _class_names(path, schema, name) for name in fields}
        row = 0
        for batch in batches(list(fields)):
            for start in range(0, batch.num_rows, _ROWS):
                part = batch.slice(start, _ROWS)
                _check(part, path, row)
                columns = [_values(part, name, names[name], path, row) for name in fields]
                for values in zip(*columns, strict=True):
                    yield f"{path}: row {row}", dict(zip(fields, values, strict=True))
                    row += 1
    if digest is not None:
        # The file was not read from its first byte to its last, so it could not be hashed on the way.
        check_digest(path, hash_file(path), digest)


def arrow_class_names(path: Path, field: str) -> tuple[str, ...] | None:
    """As `class_names`, of a `.parquet` or an `.arrow` file."""
    with _open(path) as (schema, _):
        return _class_names(path, schema, field)


Values = list[Any]
Batches = Callable[[list[str]], "Iterator[RecordBatch]"]


@contextmanager
def _open(path: Path) -> Iterator[tuple[Schema, Batches]]:
    """A file's schema, and a function that reads columns of it by batches."""
    import pyarrow as pa
    from pyarrow import parquet

    kind = "a Parquet file" if path.suffix == ".parquet" else "an Arrow stream"
    try:
        with pa.OSFile(str(path)) as file:
            if path.suffix == ".parquet":
                # So a row group is read piece by piece, whatever its size.
                found = parquet.ParquetFile(file, buffer_size=_READ_BYTES, pre_buffer=False)
                yield (
                    found.schema_arrow,
                    lambda names: found.iter_batches(_ROWS, columns=names, use_threads=False),
                )
            else:
                stream = pa.ipc.open_stream(file)
                yield stream.schema, lambda names: _batches(stream, file, names, path)
    except OSError as error:
        # Arrow's errors about what a file holds may be of this class, too, without a number.
        if error.errno:
            raise unreadable(path, OSError(error.errno, os.strerror(error.errno))) from None
        raise _damaged(path, kind, error) from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _damaged(path, kind, error) from None


def _batches(stream: Any, file: Any, names: list[str], path: Path) -> Iterator[RecordBatch]:
    for batch in stream:
        yield batch.select(names)
    # Without its end, a stream that was cut between two batches would read as a shorter one.
    file.seek(max(0, file.size() - len(_END)))
    if file.read() != _END:
        raise DataError(f"{path}: a torn Arrow stream: it has no mark at its end; copy or save it again")


def _damaged(path: Path, kind: str, error: Exception) -> DataError:
    advice = "; write it again with Dataset.save_to_disk or to_parquet" if path.suffix == ".arrow" else ""
    told = " ".join(str(error).split())
    return DataError(f"{path}: not {kind}, or damaged: {told}{advice}")


def _check(batch: RecordBatch, path: Path, first: int) -> None:
    """Whether what a batch says of itself is true: reading bytes that are not there would end the process."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        _find_bytes(batch, path, first)
        raise


def _find_bytes(batch: RecordBatch, path: Path, first: int) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for number, value in enumerate(column):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: row {first + number}: column {name!r} is not UTF-8: {error.reason} at byte "
                    f"{error.start}; write the file again as UTF-8"
                ) from None


def _values(batch: RecordBatch, name: str, names: tuple[str, ...] | None, path: Path, first: int) -> Values:
    values: Values = batch.column(name).to_pylist()
    if names is None:
        return values
    return [
        _name(value, names, f"{path}: row {first + number}: column {name!r}")
        for number, value in enumerate(values)
    ]


def _name(number: Any, names: tuple[str, ...], where: str) -> str | None:
    # Data sets without labels, such as GLUE's tests, have -1.
    if number is None or number == -1:
        return None
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise DataError(f"{where}: {number!r} is no class; expected 0 to {len(names) - 1}")
    return names[number]


def _class_names(path: Path, schema: Schema, field: str) -> tuple[str, ...] | None:
    """From the file's own metadata, or the `dataset_info.json` beside it where there is none."""
    written = (schema.metadata or {}).get(b"huggingface")
    beside = path.parent / "dataset_info.json"
    found = []
    if written:
        found.append(_names_in(_parsed(written, f"{path}: its metadata under 'huggingface'"), field))
    if path.suffix == ".arrow" and beside.exists():
        found.append(_names_in({"info": _parsed(_read(beside), f"{beside}")}, field))
    if len(set(found)) > 1:
        raise DataError(
            f"{path}: the classes of {field!r} are {found[0]} in the file and {found[1]} in {beside}: save "
            "the data set again with Dataset.save_to_disk"
        )
    return found[0] if found else None


def _names_in(found: Any, field: str) -> tuple[str, ...] | None:
    for key in ("info", "features", field):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict) or found.get("_type") != "ClassLabel":
        return None
    names = found.get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None


def _parsed(content: bytes, what: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{what}: not JSON: {error}") from None
