"""The node-local cache: text is tokenised once per node, and every rank of the node opens the result."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hvdtrain.core.data.dataset import Dataset
from hvdtrain.core.data.hashing import content_hash, file_stamp, hash_file, hash_texts
from hvdtrain.core.data.packing import pack, split
from hvdtrain.core.data.sources import documents, source_files
from hvdtrain.core.data.store import Damaged, Store, open_store, write_store
from hvdtrain.core.data.tokenizer import encoder, load_tokenizer, token_ids, train_tokenizer
from hvdtrain.core.errors import DataError
from hvdtrain.core.paths import cache_root, user_path

if TYPE_CHECKING:
    from hvdtrain.core.sections import DataSpec

FORMAT = 1
_BATCH_CHARS = 1 << 20


def _silent(message: str) -> None:
    pass


def prepare(data: DataSpec, vocab_size: int, seed: int, announce: Callable[[str], None] = _silent) -> Dataset:
    """Open the corpus as token sequences; tokenise and pack it first if this node has not done so.

    The cache is named by a hash of the sources' bytes, the tokenizer, the sequence length and the packing, so
    a change of any of them makes a new one and a change of seed or split does not. One process builds, under
    a file lock, in a directory that gets its name when it is complete; others wait. A damaged cache is built
    again.

    Args:
        data: the spec's data section.
        vocab_size: the model's, `model.vocab_size`: upper bound of the tokenizer's size.
        seed: the job's seed; it decides the train/validation split.
        announce: called with a line for the user when the call will take a while.

    Returns:
        The dataset; its files lie in `data.cache_dir`, else $HVDTRAIN_CACHE_DIR/data, else
        ~/.cache/hvdtrain/data.

    Raises:
        DataError: the corpus or tokenizer cannot be used, or the cache cannot be written.
    """
    root = cache_directory(data)
    name = _cache_name(data, vocab_size, root)
    store = _open(root / name)
    if store is None:
        with _writing(root), _locked(root / f"{name}.lock", announce):
            # Another rank may have built it while this one waited for the lock.
            store = _open(root / name, announce) or _build(data, vocab_size, root / name, announce)
    return store.dataset(data.max_seq_length, data.validation_split, seed)


def cache_directory(data: DataSpec) -> Path:
    """`data.cache_dir`, else data/ in the folder of all caches (see `cache_root`)."""
    if data.cache_dir is not None:
        return user_path(data.cache_dir, "data.cache_dir:", DataError)
    return cache_root() / "data"


def _cache_name(data: DataSpec, vocab_size: int, root: Path) -> str:
    given = data.tokenizer_file
    where = "data.tokenizer_file:"
    vocabulary = hash_file(user_path(given, where, DataError), f"{where} ") if given else "wordpiece"
    tokenizer = f"{vocabulary} {vocab_size}"
    sources = content_hash(data, root / "sources.json")
    shape = f"{data.max_seq_length} {data.packing} {data.text_field}"
    return hash_texts([f"format {FORMAT}", f"tokenizers {version('tokenizers')}", sources, tokenizer, shape])[
        :32
    ]


def _open(directory: Path, announce: Callable[[str], None] = _silent) -> Store | None:
    try:
        return open_store(directory)
    except Damaged as damage:
        announce(f"data: the cache {directory} is damaged ({damage}); building it again")
        return None


def _build(data: DataSpec, vocab_size: int, target: Path, announce: Callable[[str], None]) -> Store:
    source = data.corpus or f"{len(data.files)} path(s) or glob(s)"
    announce(f"data: tokenising {source} into {target}")
    start = time.monotonic()
    stamps = _stamps(data)
    # Only the holder of the lock writes here, so whatever lies here was left by a process that died.
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        _tokenise(data, vocab_size, unfinished)
        if _stamps(data) != stamps:
            raise DataError(
                "data.files: a file changed while it was read; start again when nothing writes to it"
            )
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    store = open_store(target)
    assert store is not None
    tokens, sequences = store.offsets[-1], len(store.offsets) - 1
    announce(f"data: {sequences:,} sequences, {tokens:,} tokens in {time.monotonic() - start:.1f} s")
    return store


def _stamps(data: DataSpec) -> list[tuple[int, int, int, int]]:
    return [file_stamp(path) for path in source_files(data)]


def _tokenise(data: DataSpec, vocab_size: int, directory: Path) -> None:
    if data.tokenizer_file is None:
        tokenizer = train_tokenizer(lambda: documents(data), vocab_size)
        ids = token_ids(tokenizer, vocab_size, f"the tokenizer trained for model.vocab_size {vocab_size}")
    else:
        tokenizer = load_tokenizer(user_path(data.tokenizer_file, "data.tokenizer_file:", DataError))
        ids = token_ids(tokenizer, vocab_size, f"data.tokenizer_file {data.tokenizer_file}")
    text = tokenizer.to_str(pretty=True)
    encode = encoder(tokenizer)
    tokenised = (tokens for batch in _batches(documents(data)) for tokens in encode(batch))
    arrange = pack if data.packing else split
    sequences = arrange(tokenised, data.max_seq_length, ids.cls, ids.sep)
    if not write_store(directory, sequences, ids, text):
        where = f"data.corpus {data.corpus}" if data.corpus else f"data.files {', '.join(data.files)}"
        raise DataError(f"{where}: no text found, so there is nothing to train on")


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Groups of documents, large enough for the tokenizer's threads and small enough for memory."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


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
