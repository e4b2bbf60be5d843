"""The node-local cache: text is tokenised once per node, and every rank of the node opens the result."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from hvdtrain.core.data.corpus import Corpus
from hvdtrain.core.data.hashing import Contents, hash_contents, hash_files, hash_texts
from hvdtrain.core.data.lines import Changed
from hvdtrain.core.data.sources import documents, validation_files
from hvdtrain.core.data.special_tokens import named_beside
from hvdtrain.core.data.store import Damaged, Store, open_store, with_validation, write_store
from hvdtrain.core.data.text import SourceSpec, TextSpec
from hvdtrain.core.data.tokenizer import (
    encoder,
    read_tokenizer,
    tokenizer_from,
    tokenizer_key,
    unknown_id,
)
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import cache_root, user_path

FORMAT = 2
# Remembers the hashes of files.
INDEX = "sources.json"


def _silent(message: str) -> None:
    pass


def prepare(data: TextSpec, vocab_size: int, seed: int, announce: Callable[[str], None] = _silent) -> Corpus:
    """Open the corpus as token sequences; tokenise and pack it first if this node has not done so.

    The cache is named by a hash of the sources' bytes, the tokenizer, the sequence length and the packing, so
    a change of any of them makes a new one and a change of seed or split does not. Files to evaluate on have
    a cache of their own, made with the tokenizer of the first. What is tokenised is hashed again, and refused
    if it is not what the name says. One process builds, under a file lock, in a directory that gets its name
    when it is complete; others wait. A damaged cache is built again.

    Args:
        data: the spec's data section.
        vocab_size: the model's, `model.vocab_size`: upper bound of the tokenizer's size.
        seed: the job's seed; it decides the train/validation split.
        announce: called with a line for the user when the call will take a while.

    Returns:
        The corpus; its files lie in `data.cache_dir`, else $HVDTRAIN_CACHE_DIR/data, else
        ~/.cache/hvdtrain/data.

    Raises:
        DataError: the corpus or tokenizer cannot be used, there is nothing to predict, or the cache cannot be
            written.
    """
    root = cache_directory(data)
    # Before hours are spent on the others.
    kept = validation_files(data)
    inputs = _look_at(data, vocab_size, root)
    train = open_or_build(root, inputs.recipe, announce)
    if kept:
        validation = open_or_build(root, _to_evaluate(inputs, kept, train, root).recipe, announce)
        corpus = with_validation(train, validation, data.max_seq_length)
    else:
        corpus = train.corpus(data.max_seq_length, data.split_share, seed)
    if not corpus.train.has_other_tokens(corpus.token_ids.special):
        raise DataError(
            f"{_source(data)}: nothing to predict, all of the training split is [UNK]: the tokenizer has "
            f"{corpus.token_ids.size:,} tokens and knows none of its words; give a larger model.vocab_size "
            f"(now {vocab_size:,}), a data.tokenizer_file for this text, or other text"
        )
    return corpus


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
        announce: as in `prepare`.

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


@dataclass(frozen=True)
class _Inputs:
    """What a cache is made from, as it was when the cache was named; `source` is that in words."""

    name: str
    source: str
    data: TextSpec
    vocab_size: int
    contents: Contents
    tokenizer: bytes | None
    beside: Mapping[str, str]

    @property
    def recipe(self) -> Recipe:
        """How the cache is made."""
        count = len(self.contents.files)
        what = f"{count} file(s)" if count else f"{self.data.corpus}"
        return Recipe(self.name, what, self.vocab_size, partial(_tokenise, self))


def _look_at(data: TextSpec, vocab_size: int, root: Path) -> _Inputs:
    file = data.tokenizer_file
    given, beside, vocabulary = None, {}, data.scheme.key
    if file:
        path = user_path(file, "data.tokenizer_file:", DataError)
        given, beside = read_tokenizer(path), named_beside(path)
        vocabulary = tokenizer_key(given, beside)
    contents = hash_contents(data, root / INDEX)
    shape = f"{data.max_seq_length} {data.packing} {data.text_field}"
    texts = [
        f"format {FORMAT}",
        f"tokenizers {version('tokenizers')}",
        contents.digest,
        f"{vocabulary} {vocab_size}",
        shape,
    ]
    return _Inputs(hash_texts(texts)[:32], _source(data), data, vocab_size, contents, given, beside)


def _to_evaluate(inputs: _Inputs, files: tuple[Path, ...], train: Store, root: Path) -> _Inputs:
    contents = hash_files(files, root / INDEX)
    tokenizer = (train.directory / "tokenizer.json").read_bytes()
    given = inputs.data.validation_files
    source = f"data.validation_files {', '.join(given)}" if given else f"{files[0].parent}"
    name = hash_texts(["validation", inputs.name, contents.digest])[:32]
    return replace(inputs, name=name, source=source, contents=contents, tokenizer=tokenizer)


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


def _tokenise(inputs: _Inputs, directory: Path) -> None:
    data, vocab_size = inputs.data, inputs.vocab_size

    def texts() -> Iterator[str]:
        return documents(data, inputs.contents.files or None)

    if inputs.tokenizer is None:
        tokenizer = data.scheme.train(texts, vocab_size)
        where = f"the tokenizer trained for model.vocab_size {vocab_size}"
    else:
        tokenizer = tokenizer_from(inputs.tokenizer, f"{data.tokenizer_file}")
        where = f"data.tokenizer_file {data.tokenizer_file}"
    ids = data.scheme.token_ids(tokenizer, vocab_size, where, inputs.beside)
    tokens = encoder(tokenizer, where)(texts())
    sequences = data.scheme.sequences(tokens, data.max_seq_length, data.packing, ids)
    if not write_store(directory, sequences, ids, tokenizer.to_str(pretty=True), unknown_id(tokenizer)):
        raise DataError(f"{inputs.source}: no text found, so there is nothing to predict")


def _source(data: TextSpec) -> str:
    return f"data.corpus {data.corpus}" if data.corpus else f"data.files {', '.join(data.files)}"


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
