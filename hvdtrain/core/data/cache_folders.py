"""The node-local cache: a directory is built once per node, and every rank of the node opens it."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.core.data.lines import Changed
from hvdtrain.core.data.store import Damaged, Store, open_store
from hvdtrain.core.data.text import SourceSpec
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import cache_root, user_path

FORMAT = 2
# Remembers the hashes of files.
INDEX = "sources.json"


def _silent(message: str) -> None:
    pass


@dataclass(frozen=True)
class Recipe:
    """How a cache is made.

    Attributes:
        name: of its directory: a hash of all that it is made from.
        source: what is tokenised, for the user.
        vocab_size: the model's.
        write: makes a valid store of an empty directory.
    """

    name: str
    source: str
    vocab_size: int
    write: Callable[[Path], None]


def open_or_build(root: Path, recipe: Recipe, announce: Callable[[str], None]) -> Store:
    """Open a cache; build it first where this node has none, or a damaged one.

    Args:
        root: of all caches of data.
        recipe: how it is made.
        announce: called with a line for the user when the call will take a while.

    Raises:
        DataError: it cannot be written, or `recipe.write` says so.
    """
    store = _open(root / recipe.name)
    if store is None:
        with _writing(root), _locked(root / f"{recipe.name}.lock", announce):
            # Another rank may have built it while this one waited for the lock.
            store = _open(root / recipe.name, announce) or _build(recipe, root, announce)
    return store


def cache_directory(data: SourceSpec) -> Path:
    """`data.cache_dir`, else data/ in the folder of all caches (see `cache_root`)."""
    if data.cache_dir is not None:
        return user_path(data.cache_dir, "data.cache_dir:", DataError)
    return cache_root() / "data"


def _open(directory: Path, announce: Callable[[str], None] = _silent) -> Store | None:
    try:
        return open_store(directory)
    except Damaged as damage:
        announce(f"data: the cache {directory} is damaged ({damage}); building it again")
        return None


def _build(recipe: Recipe, root: Path, announce: Callable[[str], None]) -> Store:
    target = root / recipe.name
    announce(f"data: tokenising {recipe.source} into {target}")
    start = time.monotonic()
    # Only the holder of the lock writes here, so whatever lies here was left by a process that died.
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        recipe.write(unfinished)
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    except Changed:
        # Should it be the remembered hash that is wrong, it is forgotten.
        (root / INDEX).unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    store = open_store(target)
    assert store is not None
    tokens, sequences = store.offsets[-1], len(store.offsets) - 1
    announce(
        f"data: {sequences:,} sequences, {tokens:,} tokens, {store.unknown_share:.2%} of the text [UNK]; "
        f"tokenizer of {store.token_ids.size:,} tokens (model.vocab_size {recipe.vocab_size:,}); "
        f"{time.monotonic() - start:.1f} s"
    )
    return store


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
