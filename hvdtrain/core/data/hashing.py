"""Hashes of what a data cache is made from, without reading large files twice."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hvdtrain.core.data.lines import file_digest, hash_file, unreadable
from hvdtrain.core.data.sources import python_docs, source_files
from hvdtrain.core.data.text import SourceSpec

_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Contents:
    """What a corpus held when it was hashed.

    Attributes:
        digest: a hash of all of it, whatever the files are called.
        files: the hash of each file by path, in order; none for the embedded corpus.
    """

    digest: str
    files: dict[Path, str] = field(default_factory=dict)


def hash_contents(data: SourceSpec, index: Path) -> Contents:
    """Hash the bytes of the corpus, or of the files to train on; arguments and result as `hash_files`."""
    if data.corpus is not None:
        return Contents(hash_texts(python_docs()))
    return hash_files(source_files(data), index)


def hash_files(paths: Iterable[Path], index: Path) -> Contents:
    """Hash the bytes of files.

    Reading every byte of a large corpus at each start would cost minutes, so the hash of a file is remembered
    under its path, size, inode, modification and change time. These are taken before the file is read: an
    edit in between has others, and the file is read again next time. A file touched less than two seconds ago
    is not remembered: it could change again within the file system's clock tick and look the same.

    Args:
        paths: the files, in the order in which they are read.
        index: the JSON file that remembers; it may be missing, stale or damaged.
    """
    known = _read_index(index)
    fresh = {}
    files = {}
    for path in paths:
        stamp = file_stamp(path)
        remembered, _, digest = known.get(str(path), "").partition(" ")
        if remembered != "-".join(map(str, stamp)):
            digest = hash_file(path)
            if time.time_ns() - max(stamp[2], stamp[3]) > _SETTLED_NS:
                fresh[str(path)] = f"{'-'.join(map(str, stamp))} {digest}"
        files[path] = digest
    if fresh:
        _write_index(index, {**known, **fresh})
    return Contents(hash_texts(f"{path.suffix} {digest}" for path, digest in files.items()), files)


def file_stamp(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file is written: size in bytes, inode, modification and change time in ns."""
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns


def hash_texts(texts: Iterable[str]) -> str:
    """BLAKE2b of texts, each with its length, in hexadecimal digits."""
    digest = file_digest()
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def _read_index(index: Path) -> dict[str, str]:
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {path: str(entry) for path, entry in known.items()} if isinstance(known, dict) else {}


def _write_index(index: Path, entries: dict[str, str]) -> None:
    # Losing the index costs one more reading of the files, so trouble in writing it is no reason to stop.
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=index.parent, prefix="sources.", delete=False) as file:
            try:
                json.dump(entries, file)
                file.flush()
                Path(file.name).replace(index)
            except OSError:
                Path(file.name).unlink()
                raise
    except OSError:
        return
