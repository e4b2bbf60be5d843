"""How a data cache comes to be: once a node, whole or not at all, and again where it is damaged."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from hvdtrain.core.data.lines import Changed
from hvdtrain.core.data.stored_files import Damaged
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import cache_root, user_path

# Remembers the hashes of files.
INDEX = "sources.json"

T = TypeVar("T")


def silent(message: str) -> None:
    """Announces nothing."""
    del message


@dataclass(frozen=True)
class Recipe(Generic[T]):
    """How a cache is made, and opened.

    Attributes:
        name: of its directory; says what it is made from.
        open: opens a directory; raises `Damaged`.
        fill: writes the files into an empty directory.
        doing: what `fill` does, for the user.
        done: what there is to say of a cache that has been made.
    """

    name: str
    open: Callable[[Path], T]
    fill: Callable[[Path], None]
    doing: str
    done: Callable[[T], str]


def cache_directory(cache_dir: str | None) -> Path:
    """`data.cache_dir`, else data/ in the folder of all caches (see `cache_root`)."""
    if cache_dir is not None:
        return user_path(cache_dir, "data.cache_dir:", DataError)
    return cache_root() / "data"


def open_or_build(recipe: Recipe[T], root: Path, announce: Callable[[str], None] = silent) -> T:
    """Open a cache; make it first if this node has not done so, or if it is damaged.

    One process builds, under a file lock, in a directory that gets its name when it is complete; others wait.

    Args:
        recipe: of the cache.
        root: the directory of all caches.
        announce: called with a line for the user when the call will take a while.

    Raises:
        DataError: the cache cannot be made or written.
    """
    found = _open(recipe, root / recipe.name)
    if found is None:
        with _writing(root), _locked(root / f"{recipe.name}.lock", announce):
            # Another rank may have built it while this one waited for the lock.
            found = _open(recipe, root / recipe.name, announce) or _build(recipe, root, announce)
    return found


def _open(recipe: Recipe[T], directory: Path, announce: Callable[[str], None] = silent) -> T | None:
    try:
        return recipe.open(directory) if directory.exists() else None
    except Damaged as damage:
        announce(f"data: the cache {directory} is damaged ({damage}); building it again")
        return None


def _build(recipe: Recipe[T], root: Path, announce: Callable[[str], None]) -> T:
    target = root / recipe.name
    announce(f"data: {recipe.doing} into {target}")
    start = time.monotonic()
    # Only the holder of the lock writes here, so whatever lies here was left by a process that died.
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        recipe.fill(unfinished)
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    except Changed:
        # Should it be the remembered hash that is wrong, it is forgotten.
        (root / INDEX).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    found = recipe.open(target)
    announce(f"data: {recipe.done(found)}; {time.monotonic() - start:.1f} s")
    return found


@contextmanager
def _locked(path: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock that the kernel frees when its holder ends, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce("data: another process of this node is preparing the data; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"data.cache_dir: cannot write the data cache in {root}: {error.strerror or error}; "
            "free space there, or set data.cache_dir or HVDTRAIN_CACHE_DIR to another directory"
        ) from None
