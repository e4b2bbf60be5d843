"""Where documents come from: the embedded corpus, text files and JSON lines, one document at a time."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hvdtrain.core.data.text import TextSpec
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import user_path

# A line of JSON is held whole while it is parsed.
MAX_JSON_CHARS = 64 << 20
MAX_DOCUMENT_CHARS = 1 << 20
_READ_BYTES = 1 << 20
_SHOWN_FIELDS = 20
# What the "surrogateescape" handler makes of bytes that are not UTF-8, and NUL, which is no text either.
_NOT_TEXT = re.compile("[\0\udc80-\udcff]")

file_digest = partial(hashlib.blake2b, digest_size=20)


class Changed(DataError):
    """A file is not what it was when it was hashed."""


def documents(data: TextSpec, files: Mapping[Path, str] | None = None) -> Iterator[str]:
    """Every document of the corpus, in an order that is the same on every node.

    The embedded corpus gives one document a topic, by topic name; a `.txt` file one a paragraph (blank lines
    between); a `.jsonl` file one a line. A line ends with LF, CR LF or CR. A document above 1 Mi characters
    is cut, a paragraph at a line's end if it can be, else at white space if there is any: so memory stays
    bounded whatever the files are.

    Args:
        data: the spec's data section.
        files: digests of the files to read by path, in order; None: those of `source_files`, unchecked.

    Yields:
        Text with at least one character that is not white space.

    Raises:
        DataError: a file is missing, unreadable, not UTF-8, not what its name says, or not what its digest
            says; the message has file:line where there is one.
    """
    if data.corpus is not None:
        yield from python_docs()
        return
    for path in source_files(data) if files is None else files:
        digest = None if files is None else files[path]
        yield from (
            _paragraphs(path, digest) if path.suffix == ".txt" else _json_lines(path, data.text_field, digest)
        )


def source_files(data: TextSpec) -> tuple[Path, ...]:
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
        # A pipe could not be read twice, and would be waited for.
        if path.exists() and not path.is_file():
            raise DataError(f"data.files: {path} is not a regular file")
    return tuple(found)


def python_docs() -> Iterator[str]:
    """The embedded corpus: the language reference and help topics that come with CPython, by name."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("data.corpus: this Python came without pydoc_data; use data.files instead") from None

    return (topics[name] for name in sorted(topics))


def pieces(text: str, most: int) -> Iterator[str]:
    """A text in parts of at most so many characters, cut at white space, or anywhere where there is none."""
    start = 0
    while len(text) - start > most:
        part = text[start : start + most]
        end = _cut(part)
        yield part[:end]
        start += end
    yield text[start:]


def _paragraphs(path: Path, digest: str | None) -> Iterator[str]:
    parts: list[str] = []
    size = 0
    for _, part in _lines(path, MAX_DOCUMENT_CHARS, digest):
        rest = ""
        if not part.isspace():
            parts.append(part)
            size += len(part.removesuffix("\n"))
            if size < MAX_DOCUMENT_CHARS:
                continue
            if not part.endswith("\n"):
                text = "".join(parts)
                cut = _cut(text)
                parts, rest = [text[:cut]], text[cut:]
        yield from _not_blank("".join(parts).removesuffix("\n"))
        parts, size = [rest], len(rest)
    yield from _not_blank("".join(parts).removesuffix("\n"))


def _json_lines(path: Path, field: str, digest: str | None) -> Iterator[str]:
    for number, line in _lines(path, MAX_JSON_CHARS + 1, digest):
        if len(line) > MAX_JSON_CHARS:
            raise DataError(f"{path}:{number}: line above {MAX_JSON_CHARS >> 20} Mi characters; split it")
        if not line.isspace():
            for part in pieces(_json_text(line, field, f"{path}:{number}"), MAX_DOCUMENT_CHARS):
                yield from _not_blank(part)


def _not_blank(text: str) -> Iterator[str]:
    if text and not text.isspace():
        yield text


def _cut(text: str) -> int:
    """Where the last word of a text starts; its end where there is but one word."""
    # Python has more kinds of white space than BERT, which joins what stands around the others.
    return max(map(text.rfind, " \n\r\t")) + 1 or len(text)


def _json_text(line: str, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: not JSON: {error}") from None
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(record).__name__}")
    if field not in record:
        names = ", ".join(sorted(record)[:_SHOWN_FIELDS]) or "none"
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


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.digest = file_digest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        return count


def _lines(path: Path, most: int, digest: str | None) -> Iterator[tuple[int, str]]:
    """Numbered lines with their "\n", a long one in parts of `most` characters.

    Args:
        path: a UTF-8 file.
        most: characters of a part.
        digest: what the file's bytes must have been once all are read; None: anything.
    """
    try:
        with path.open("rb", buffering=0) as file:
            hashed = _Hashed(file)
            # The lines of a file that is not UTF-8 are read, too, so that an error has its line.
            text = io.TextIOWrapper(
                io.BufferedReader(hashed, _READ_BYTES), encoding="utf-8-sig", errors="surrogateescape"
            )
            number, column = 1, 0
            for part in iter(partial(text.readline, most), ""):
                _check_text(part, f"{path}:{number}", column)
                yield number, part
                number, column = (number + 1, 0) if part.endswith("\n") else (number, column + len(part))
    except OSError as error:
        raise unreadable(path, error) from None
    if digest not in (None, hashed.digest.hexdigest()):
        raise Changed(f"data.files: {path}: changed while it was read; start again when nothing writes to it")


def _check_text(part: str, where: str, column: int) -> None:
    bad = _NOT_TEXT.search(part)
    if bad and bad[0] == "\0":
        raise DataError(
            f"{where}: NUL at column {column + bad.start() + 1}: not text, or UTF-16; convert the file"
        )
    if bad:
        raise DataError(
            f"{where}: not UTF-8: byte 0x{ord(bad[0]) - 0xDC00:02x} at column {column + bad.start() + 1}; "
            "convert the file"
        )


def unreadable(path: Path, error: OSError, where: str = "data.files: ") -> DataError:
    """The error to raise when a file cannot be read; `where` names the field of the spec."""
    return DataError(f"{where}{path}: cannot be read: {error.strerror or error}")
