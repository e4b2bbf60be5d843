"""Text as tokens: made once per node, in the cache that every rank of the node opens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from hvdtrain.core.data.building import INDEX, Recipe, open_or_build, silent
from hvdtrain.core.data.cache_folders import FORMAT, cache_directory, text_recipe
from hvdtrain.core.data.corpus import Corpus
from hvdtrain.core.data.given_tokenizer import given_tokenizer, open_tokenizer
from hvdtrain.core.data.hashing import Contents, hash_contents, hash_files, hash_texts
from hvdtrain.core.data.sources import documents, told_validation, validation_files
from hvdtrain.core.data.store import Store, with_validation, write_store
from hvdtrain.core.data.text import TextSpec
from hvdtrain.core.data.tokenizer import encoder, unknown_id
from hvdtrain.core.errors import DataError


def prepare(data: TextSpec, vocab_size: int, seed: int, announce: Callable[[str], None] = silent) -> Corpus:
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
    train = open_or_build(inputs.recipe, root, announce)
    if kept:
        validation = open_or_build(_to_evaluate(inputs, kept, train, root).recipe, root, announce)
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
    def recipe(self) -> Recipe[Store]:
        """How the cache is made."""
        count = len(self.contents.files)
        what = f"{count} file(s)" if count else f"{self.data.corpus}"
        return text_recipe(self.name, what, self.vocab_size, partial(_tokenise, self))


def _look_at(data: TextSpec, vocab_size: int, root: Path) -> _Inputs:
    given, beside, vocabulary = given_tokenizer(data)
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
    source = told_validation(inputs.data, files)
    name = hash_texts(["validation", inputs.name, contents.digest])[:32]
    return replace(inputs, name=name, source=source, contents=contents, tokenizer=tokenizer)


def _tokenise(inputs: _Inputs, directory: Path) -> None:
    data, vocab_size = inputs.data, inputs.vocab_size

    def texts() -> Iterator[str]:
        return documents(data, inputs.contents.files or None)

    tokenizer, where = open_tokenizer(data, inputs.tokenizer, texts, vocab_size)
    ids = data.scheme.token_ids(tokenizer, vocab_size, where, inputs.beside)
    tokens = encoder(tokenizer, where)(texts())
    sequences = data.scheme.sequences(tokens, data.max_seq_length, data.packing, ids)
    if not write_store(directory, sequences, ids, tokenizer.to_str(pretty=True), unknown_id(tokenizer)):
        raise DataError(f"{inputs.source}: no text found, so there is nothing to predict")


def _source(data: TextSpec) -> str:
    return f"data.corpus {data.corpus}" if data.corpus else f"data.files {', '.join(data.files)}"
