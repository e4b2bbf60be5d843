"""Where documents come from: the embedded corpus, text files and JSON lines, one document at a time."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hvdtrain.core.errors import DataError
from hvdtrain.core.paths import user_path

if TYPE_CHECKING:
    from hvdtrain.core.sections import DataSpec

MAX_LINE_BYTES = 64 << 20
MAX_PARAGRAPH_CHARS = 1 << 20


def documents(data: DataSpec) -> Iterator[str]:
    """Every document of the corpus, in an order that is the same on every node.

    The embedded corpus gives one document a topic, by topic name; a `.txt` file one a paragraph (blank lines
    between; a paragraph above 1 MiB is cut at a line's end, so that memory stays bounded); a `.jsonl` file
    one a line.

    Args:
        data: the spec's data section.

    Yields:
        Text with at least one character that is not white space.

    Raises:
        DataError: a file is missing, unreadable, not UTF-8 or not what its name says; the message has
        file:line.
    """
    if data.corpus is not None:
        yield from python_docs()
        return
    for path in source_files(data):
        yield from _paragraphs(path) if path.suffix == ".txt" else _json_lines(path, data.text_field)


def source_files(data: DataSpec) -> tuple[Path, ...]:
    """The files that `data.files` names, each once: patterns in the spec's order, a glob's matches by name.

    Raises:
        DataError: a pattern matches no file, or a file is neither `.txt` nor `.jsonl`.
    """
    found: dict[Path, None] = {}
    for pattern in data.files:
        literal = user_path(pattern, "data.files:", DataError)
        names = [literal] if literal.exists() else sorted(map(Path, glob.glob(str(literal), recursive=True)))
        files = [name.absolute() for name in names if not name.is_dir()]
        if not files:
            raise DataError(
                f"data.files: {pattern!r} matches no file from {Path.cwd()}; for a folder write DIR/*.txt"
            )
        found.update(dict.fromkeys(files))
    for path in found:
        if path.suffix not in (".txt", ".jsonl"):
            raise DataError(
                f"data.files: {path} must end in .txt (paragraphs) or .jsonl (one JSON object a line)"
            )
    return tuple(found)


def python_docs() -> Iterator[str]:
    """The embedded corpus: the language reference and help topics that come with CPython, by name."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("data.corpus: this Python came without pydoc_data; use data.files instead") from None

    return (topics[name] for name in sorted(topics))


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    for _, line in _lines(path):
        if line and not line.isspace():
            lines.append(line)
            size += len(line)
            if size < MAX_PARAGRAPH_CHARS:
                continue
        if lines:
            yield "\n".join(lines)
            lines, size = [], 0
    if lines:
        yield "\n".join(lines)


def _json_lines(path: Path, field: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line or line.isspace():
            continue
        text = _json_text(line, field, f"{path}:{number}")
        if text and not text.isspace():
            yield text


def _json_text(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    if field not in record:
        names = ", ".join(sorted(record)) or "none"
        raise DataError(
            f"{where}: no field {field!r} (fields here: {names}); set data.text_field to the one with text"
        )
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field {field!r} should be text, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: field {field!r} holds half a surrogate pair at character {error.start}"
        ) from None
    return text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; read as bytes, so that an encoding error has its line."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), start=1):
                if len(raw) > MAX_LINE_BYTES:
                    raise DataError(f"{path}:{number}: line above {MAX_LINE_BYTES >> 20} MiB; split it")
                yield number, _decode(raw, f"{path}:{number}").removeprefix("\ufeff" if number == 1 else "")
    except OSError as error:
        raise unreadable(path, error) from None


def _decode(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}; convert the file"
        ) from None


def unreadable(path: Path, error: OSError, where: str = "data.files: ") -> DataError:
    """The error to raise when a file cannot be read; `where` names the field of the spec."""
    return DataError(f"{where}{path}: cannot be read: {error.strerror or error}")
