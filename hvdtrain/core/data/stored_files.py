"""The files of one cache directory, whose sizes and checksums are in its `meta.json`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.process.files import sync

META = "meta.json"
_BLOCK = 1 << 20
_BLOCKS = 64


class Damaged(Exception):
    """A cache directory is not what its writer left; the message says how."""


def write_meta(directory: Path, names: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Write what a directory holds, and make all of it survive a power cut.

    Args:
        directory: holds the files.
        names: of the files.
        facts: what else there is to say, JSON-ready.

    Raises:
        OSError: the file system refuses.
    """
    meta = {**facts, "files": {name: describe(directory / name) for name in names}}
    (directory / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
    for path in [*(directory / name for name in (*names, META)), directory]:
        sync(path)


def read_meta(directory: Path) -> dict[str, Any]:
    """What `write_meta` wrote: the facts, and `files`."""
    found: dict[str, Any] = json.loads((directory / META).read_text(encoding="utf-8"))
    return found


@contextmanager
def opening(directory: Path) -> Iterator[dict[str, Any]]:
    """What `write_meta` wrote, once the files are seen to be as they were written.

    Args:
        directory: holds them.

    Raises:
        Damaged: a file is missing, of the wrong size or with other contents, or what is done with the facts
            fails on them.
    """
    try:
        meta = read_meta(directory)
        for name, expected in meta["files"].items():
            if describe(directory / name) != expected:
                raise Damaged(f"{name} is not as it was written")
        yield meta
    except OSError as error:
        raise Damaged(f"{error.filename or directory}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(f"{META}: {error}") from None


def describe(path: Path) -> dict[str, Any]:
    """Size in bytes and checksum.

    A file above 64 MiB is checked in 64 blocks of 1 MiB spread evenly from its first byte to its last: a rank
    must not read hundreds of gigabytes before it starts, and what tears a file (a cut, a lost page range)
    shows in its size or its ends. Smaller files are checked whole.
    """
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        last = max(0, size - _BLOCK)
        for start in (
            range(0, size, _BLOCK) if size <= _BLOCK * _BLOCKS else np.linspace(0, last, _BLOCKS, dtype=int)
        ):
            file.seek(start)
            digest.update(file.read(_BLOCK))
    return {"size": size, "blake2b": digest.hexdigest()}
