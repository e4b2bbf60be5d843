"""Directories that appear whole or not at all, in place of older ones of their names."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hvdtrain.core.process.files import sync

# From <fcntl.h> and <linux/fs.h>.
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def replace_directory(directory: Path, write: Callable[[Path], object]) -> None:
    """Make a directory that appears whole or not at all, in place of an older one of its name.

    Args:
        directory: its path.
        write: writes the files into an empty directory; `OSError` leaves everything as it was.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    put_back(directory)
    # What a killed process left; one rank alone writes.
    for left in directory.parent.glob(f".{directory.name}.tmp-*"):
        shutil.rmtree(left, ignore_errors=True)
    fresh = directory.with_name(f".{directory.name}.tmp-{os.getpid()}")
    try:
        fresh.mkdir()
        write(fresh)
        for file in fresh.iterdir():
            sync(file)
        sync(fresh)
        _take_its_place(fresh, directory)
        # What was there before is deleted when nobody can find it under its name any more.
        sync(directory.parent)
        for left in directory.parent.glob(f".{directory.name}.before*"):
            _delete_replaced(left, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def put_back(directory: Path) -> None:
    """Give a directory its name again where a process was killed between the two renames that replace it.

    Args:
        directory: its path, where nobody else writes; `OSError` passes.
    """
    if directory.exists():
        return
    # As `mkdtemp` makes names; an empty one has not taken anything in.
    names = f".{directory.name}.before-{'[a-z0-9_]' * 8}"
    left = [path for path in directory.parent.glob(names) if path.is_dir() and any(path.iterdir())]
    if left:
        # The last rename counts.
        max(left, key=lambda path: path.stat().st_ctime_ns).rename(directory)


def _take_its_place(fresh: Path, directory: Path) -> None:
    if not directory.exists():
        fresh.rename(directory)
    elif not _exchange(fresh, directory):
        # NFS cannot exchange names: a kill between these two renames leaves `before`, which is put back. Its
        # name is new: another that was left so may not let itself be deleted.
        before = Path(tempfile.mkdtemp(prefix=f".{directory.name}.before-", dir=directory.parent))
        directory.rename(before)
        try:
            fresh.rename(directory)
        except OSError:
            before.rename(directory)
            raise


def _delete_replaced(left: Path, directory: Path) -> None:
    """Delete an older directory of this name; a kill meanwhile leaves nothing that would be put back."""
    with suppress(OSError):
        # In the way of nobody, where it cannot be deleted.
        gone = tempfile.mkdtemp(prefix=f".{directory.name}.tmp-", dir=directory.parent)
        left.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at once (Linux's renameat2); False where that cannot be done."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(first), os.fsencode(second)
    return (
        renameat2 is not None and renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
    )
