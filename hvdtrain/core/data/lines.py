"""Text files as numbered lines, hashed as they are read."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hvdtrain.core.errors import DataError

_READ_BYTES = 1 << 20
# What the "surrogateescape" handler makes of bytes that are not UTF-8, and NUL, which is no text either.
_NOT_TEXT = re.compile("[\0\udc80-\udcff]")

file_digest = partial(hashlib.blake2b, digest_size=20)


class Changed(DataError):
    """A file is not what it was when it was hashed."""


def lines(path: Path, most: int, digest: str | None, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, a long one in parts of `most` characters.

    Args:
        path: a UTF-8 file.
        most: characters of a part.
        digest: what the file's bytes must have been once all are read; None: anything.
        newline: as that of `open`: None makes every end of a line "\\n", "" leaves it as it is.

    Raises:
        DataError: the file cannot be read, is not text, or is not what its digest says.
    """
    try:
        with path.open("rb", buffering=0) as file:
            hashed = _Hashed(file)
            # The lines of a file that is not UTF-8 are read, too, so that an error has its line.
            text = io.TextIOWrapper(
                io.BufferedReader(hashed, _READ_BYTES),
                encoding="utf-8-sig",
                errors="surrogateescape",
                newline=newline,
            )
            number, column = 1, 0
            for part in iter(partial(text.readline, most), ""):
                _check_text(part, f"{path}:{number}", column)
                yield number, part
                ended = part.endswith(("\n", "\r"))
                number, column = (number + 1, 0) if ended else (number, column + len(part))
    except OSError as error:
        raise unreadable(path, error) from None
    check_digest(path, hashed.digest.hexdigest(), digest)


def check_digest(path: Path, found: str, expected: str | None) -> None:
    """Compare what was read of a file with what was hashed before.

    Raises:
        Changed: they differ.
    """
    if expected not in (None, found):
        raise Changed(f"data.files: {path}: changed while it was read; start again when nothing writes to it")


def hash_file(path: Path) -> str:
    """BLAKE2b of a file in hexadecimal digits; DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, file_digest).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError, where: str = "data.files: ") -> DataError:
    """The error to raise when a file cannot be read; `where` names the field of the spec."""
    return DataError(f"{where}{path}: cannot be read: {error.strerror or error}")


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


def _check_text(part: str, where: str, column: int) -> None:
    # Quicker than a search, and true of most lines.
    if part.isascii() and "\0" not in part:
        return
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
