"""Texts with labels as tokens: made once per node, in the cache that all data is in."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.building import INDEX, Recipe, open_or_build
from hvdtrain.core.data.cache_folders import FORMAT, cache_directory, text_recipe
from hvdtrain.core.data.corpus import Corpus, Sequences
from hvdtrain.core.data.given_tokenizer import given_tokenizer, open_tokenizer
from hvdtrain.core.data.hashing import Contents, hash_files, hash_texts
from hvdtrain.core.data.labelled_text import LabelledTextSpec, known_classes, labelled_rows
from hvdtrain.core.data.labels import Labels, find_labels
from hvdtrain.core.data.row_encoder import EncodedRow, row_encoder
from hvdtrain.core.data.sources import source_files, told_validation, validation_files
from hvdtrain.core.data.store import Extra, Store, with_validation, write_store
from hvdtrain.core.data.tokenizer import unknown_id
from hvdtrain.core.errors import DataError

# Names of what a store has beside tokens.
_LABELS, _SECOND_STARTS, _CLASSES = "labels", "second_starts", "classes"


@dataclass(frozen=True, eq=False)
class LabelledSequences:
    """Rows of tokens, each with a class.

    Attributes:
        sequences: the tokens, with those that the tokenizer adds.
        labels: the class of each, int32.
        second_starts: where the second text begins in each, int32; the length where there is one text.
    """

    sequences: Sequences
    labels: NDArray[np.int32]
    second_starts: NDArray[np.int32]

    @classmethod
    def of(cls, sequences: Sequences, store: Store) -> LabelledSequences:
        """Some of the sequences of a cache."""
        columns = {
            name: np.asarray(column)[sequences.members] for name, column in store.extra.columns.items()
        }
        return cls(sequences, columns[_LABELS], columns[_SECOND_STARTS])


@dataclass(frozen=True, eq=False)
class LabelledCorpus:
    """Texts with labels, ready for a task.

    Attributes:
        corpus: the tokens.
        labels: the names of the classes.
        train: the rows to train on.
        validation: the rows to evaluate on.
    """

    corpus: Corpus
    labels: Labels
    train: LabelledSequences
    validation: LabelledSequences


def prepare_rows(
    data: LabelledTextSpec, vocab_size: int, num_labels: int, seed: int, announce: Callable[[str], None]
) -> LabelledCorpus:
    """Open the rows as tokens; tokenise them first if this node has not done so.

    Those of files to evaluate on have a cache of their own: see `hvdtrain.core.data.cache_folders`.

    Args:
        data: the spec's data section.
        vocab_size: the model's, `model.vocab_size`: upper bound of the tokenizer's size.
        num_labels: classes that the model tells apart.
        seed: the job's seed; it decides the train/validation split.
        announce: called with a line for the user when the call will take a while.

    Raises:
        DataError: a row, the tokenizer or the number of classes cannot be used, or the cache cannot be
            written.
    """
    root, kept = cache_directory(data), validation_files(data)
    making = _look_at(data, vocab_size, num_labels, root)
    train = open_or_build(making.recipe, root, announce)
    names = tuple(train.extra.facts[_CLASSES])
    # The cache may have been made for another model.
    _check_count(names, data, num_labels, making.source)
    if not kept:
        corpus = train.corpus(data.max_seq_length, data.split_share, seed)
        validation = train
    else:
        validation = open_or_build(_to_evaluate(making, train, kept, root).recipe, root, announce)
        corpus = with_validation(train, validation, data.max_seq_length)
    return LabelledCorpus(
        corpus,
        Labels(names),
        LabelledSequences.of(corpus.train, train),
        LabelledSequences.of(corpus.validation, validation),
    )


@dataclass(frozen=True)
class _Making:
    """What a cache is made from, as it was when the cache was named.

    Attributes:
        data: the spec's data section.
        vocab_size: the model's.
        num_labels: likewise.
        contents: the rows.
        tokenizer: the `tokenizer.json`; None: it is trained.
        beside: special tokens that are named beside it.
        key: what differs between tokenizers.
        classes: names of the classes; empty: those that are found.
        source: what the rows are called in an error.
    """

    data: LabelledTextSpec
    vocab_size: int
    num_labels: int
    contents: Contents
    tokenizer: bytes | None
    beside: Mapping[str, str]
    key: str
    classes: tuple[str, ...]
    source: str

    @property
    def recipe(self) -> Recipe[Store]:
        """How the cache is made."""
        data, files = self.data, self.contents.files
        texts = [
            f"labelled, format {FORMAT}",
            f"tokenizers {version('tokenizers')}",
            self.contents.digest,
            f"{self.key} {self.vocab_size} {data.max_seq_length}",
            *data.columns,
            *self.classes,
        ]
        source = f"{len(files)} file(s)" if files else f"{data.corpus}"
        return text_recipe(hash_texts(texts)[:32], source, self.vocab_size, partial(_write, self))


def _look_at(data: LabelledTextSpec, vocab_size: int, num_labels: int, root: Path) -> _Making:
    given, beside, key = given_tokenizer(data)
    if data.corpus is None:
        contents = hash_files(source_files(data), root / INDEX)
        source = f"data.files {', '.join(data.files)}"
    else:
        contents = Contents(hash_texts(f"{row.label} {row.text}" for row in labelled_rows(data, {})))
        source = f"data.corpus {data.corpus}"
    classes = known_classes(data, contents.files)
    if classes:
        _check_count(classes, data, num_labels, source)
    return _Making(data, vocab_size, num_labels, contents, given, beside, key, classes, source)


def _to_evaluate(making: _Making, train: Store, files: tuple[Path, ...], root: Path) -> _Making:
    return replace(
        making,
        contents=hash_files(files, root / INDEX),
        tokenizer=(train.directory / "tokenizer.json").read_bytes(),
        key=f"that of {making.recipe.name}",
        classes=tuple(train.extra.facts[_CLASSES]),
        source=told_validation(making.data, files),
    )


def _write(making: _Making, directory: Path) -> None:
    data, files, vocab_size = making.data, making.contents.files, making.vocab_size

    def texts() -> Iterator[str]:
        for row in labelled_rows(data, files):
            yield from (row.text,) if row.pair is None else (row.text, row.pair)

    tokenizer, where = open_tokenizer(data, making.tokenizer, texts, vocab_size)
    ids = data.scheme.token_ids(tokenizer, vocab_size, where, making.beside)
    content, columns = tokenizer.to_str(pretty=True), _Columns(making)
    encode = row_encoder(tokenizer, ids, data.max_seq_length, where)
    sequences = columns.filled_by(encode(labelled_rows(data, files)))
    if not write_store(directory, sequences, ids, content, unknown_id(tokenizer), columns.extra):
        raise DataError(f"{making.source}: no row found, so there is nothing to predict")


class _Columns:
    """What is known of each row beside its tokens."""

    def __init__(self, making: _Making) -> None:
        self._making = making
        self._known = Labels(making.classes) if making.classes else None
        # Numbers in the order in which classes are met, until all are known.
        self._met: dict[str, int] = {}
        self._labels, self._second_starts = array("i"), array("i")

    def filled_by(self, rows: Iterable[EncodedRow]) -> Iterator[NDArray[np.int32]]:
        """The tokens of each row, once the others are noted."""
        for encoded in rows:
            label, where = encoded.row.label, encoded.row.where
            number = (
                self._known.number(label, where)
                if self._known
                else self._met.setdefault(label, len(self._met))
            )
            self._labels.append(number)
            self._second_starts.append(encoded.second_start)
            yield encoded.tokens

    def extra(self) -> Extra:
        """All that was noted; DataError where there are more or fewer classes than the model has."""
        making, numbers = self._making, np.asarray(self._labels, np.int32)
        labels = self._known
        if labels is None:
            labels = find_labels(self._met, (), making.num_labels, making.source)
            numbers = np.array([labels.number(name, making.source) for name in self._met], np.int32)[numbers]
        columns = {_LABELS: numbers, _SECOND_STARTS: np.asarray(self._second_starts, np.int32)}
        return Extra(columns, {_CLASSES: list(labels.names)})


def _check_count(names: Sequence[str], data: LabelledTextSpec, num_labels: int, source: str) -> None:
    """DataError where a model has more or fewer classes than the data."""
    if len(names) != num_labels:
        find_labels(names, data.class_names, num_labels, source)
