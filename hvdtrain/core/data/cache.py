"""The node-local cache: text is tokenised once per node, and every rank of the node opens the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from hvdtrain.core.data import building
from hvdtrain.core.data.building import INDEX, Recipe, open_or_build, silent
from hvdtrain.core.data.corpus import Corpus
from hvdtrain.core.data.hashing import Contents, hash_contents, hash_files, hash_texts
from hvdtrain.core.data.lines import file_digest
from hvdtrain.core.data.sources import documents, validation_files
from hvdtrain.core.data.store import Store, open_store, with_validation, write_store
from hvdtrain.core.data.text import SourceSpec, TextSpec
from hvdtrain.core.data.tokenizer import (
    encoder,
    read_tokenizer,
    tokenizer_from,
    unknown_id,
)
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import user_path

FORMAT = 2


def prepare(data: TextSpec, vocab_size: int, seed: int, announce: Callable[[str], None] = silent) -> Corpus:
    """Open the corpus as token sequences; tokenise and pack it first if this node has not done so.

    The cache is named by a hash of the sources' bytes, the tokenizer, the sequence length and the packing, so
    a change of any of them makes a new one and a change of seed or split does not. Files to evaluate on have
    a cache of their own, made with the tokenizer of the first. What is tokenised is hashed again, and refused
    if it is not what the name says. One process builds; others wait. A damaged cache is built again.

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
    train = open_or_build(_recipe(inputs), root, announce)
    if kept:
        recipe = _recipe(_to_evaluate(inputs, kept, train, root))
        validation = open_or_build(recipe, root, announce)
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


def cache_directory(data: SourceSpec) -> Path:
    """`data.cache_dir`, else data/ in the folder of all caches (see `cache_root`)."""
    return building.cache_directory(data.cache_dir)


@dataclass(frozen=True)
class _Inputs:
    """What a cache is made from, as it was when the cache was named; `source` is that in words."""

    name: str
    source: str
    data: TextSpec
    vocab_size: int
    contents: Contents
    tokenizer: bytes | None


def _look_at(data: TextSpec, vocab_size: int, root: Path) -> _Inputs:
    file = data.tokenizer_file
    given = read_tokenizer(user_path(file, "data.tokenizer_file:", DataError)) if file else None
    vocabulary = data.scheme.key if given is None else file_digest(given).hexdigest()
    contents = hash_contents(data, root / INDEX)
    shape = f"{data.max_seq_length} {data.packing} {data.text_field}"
    texts = [
        f"format {FORMAT}",
        f"tokenizers {version('tokenizers')}",
        contents.digest,
        f"{vocabulary} {vocab_size}",
        shape,
    ]
    return _Inputs(hash_texts(texts)[:32], _source(data), data, vocab_size, contents, given)


def _to_evaluate(inputs: _Inputs, files: tuple[Path, ...], train: Store, root: Path) -> _Inputs:
    contents = hash_files(files, root / INDEX)
    tokenizer = (train.directory / "tokenizer.json").read_bytes()
    given = inputs.data.validation_files
    source = f"data.validation_files {', '.join(given)}" if given else f"{files[0].parent}"
    name = hash_texts(["validation", inputs.name, contents.digest])[:32]
    return replace(inputs, name=name, source=source, contents=contents, tokenizer=tokenizer)


def text_recipe(name: str, source: str, vocab_size: int, write: Callable[[Path], None]) -> Recipe[Store]:
    """How a cache of tokens is made.

    Args:
        name: of its directory: a hash of all that it is made from.
        source: what is tokenised, for the user.
        vocab_size: the model's.
        write: makes a valid store of an empty directory.
    """

    def done(store: Store) -> str:
        return (
            f"{len(store.offsets) - 1:,} sequences, {store.offsets[-1]:,} tokens, "
            f"{store.unknown_share:.2%} of the text [UNK]; tokenizer of {store.token_ids.size:,} tokens "
            f"(model.vocab_size {vocab_size:,})"
        )

    return Recipe(name, open_store, write, f"tokenising {source}", done)


def _recipe(inputs: _Inputs) -> Recipe[Store]:
    count = len(inputs.contents.files)
    source = f"{count} file(s)" if count else f"{inputs.data.corpus}"
    return text_recipe(inputs.name, source, inputs.vocab_size, partial(_tokenise, inputs))


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
    ids = data.scheme.token_ids(tokenizer, vocab_size, where)
    tokens = encoder(tokenizer, where)(texts())
    sequences = data.scheme.sequences(tokens, data.max_seq_length, data.packing, ids)
    if not write_store(directory, sequences, ids, tokenizer.to_str(pretty=True), unknown_id(tokenizer)):
        raise DataError(f"{inputs.source}: no text found, so there is nothing to predict")


def _source(data: TextSpec) -> str:
    return f"data.corpus {data.corpus}" if data.corpus else f"data.files {', '.join(data.files)}"
