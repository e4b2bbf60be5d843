"""Files: small ones that are whole at every moment, and any that are deleted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if not file.is_dir())


def remove(path: Path) -> None:
    """Delete a file or a directory with all that it holds; of a link, the link alone."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, would outlive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write a file, or replace an older one, so that whoever is killed or finds no space leaves it as it was.

    When it returns, the file outlives a power failure.

    Args:
        path: of the file, in an existing directory.
        text: its content, written in UTF-8.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)
