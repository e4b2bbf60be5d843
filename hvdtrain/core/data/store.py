"""One cache directory: tokens, offsets, tokenizer, and their sizes and checksums in `meta.json`."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.corpus import Corpus, Sequences, split_members
from hvdtrain.core.data.stored_files import describe, opening, read_meta, write_meta
from hvdtrain.core.data.text import TokenIds

_FILES = ("tokens.bin", "offsets.bin", "tokenizer.json")


@dataclass(frozen=True, eq=False)
class Extra:
    """What a task knows of its sequences beside their tokens.

    Attributes:
        columns: int32 (sequences,) by name.
        facts: anything else by name, JSON-ready.
    """

    columns: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Store:
    """An open cache.

    Attributes:
        directory: where it lies.
        tokens: all sequences one after the other, uint16 or uint32 (total,), memory-mapped.
        offsets: start of each sequence and the end of the last, int64 (count + 1,), memory-mapped.
        token_ids: size and special ids of the tokenizer.
        fingerprint: hash of the contents.
        unknown_share: share of the text's tokens that are [UNK].
        extra: what else is known of the sequences; columns are memory-mapped.
    """

    directory: Path
    tokens: NDArray[np.unsignedinteger]
    offsets: NDArray[np.int64]
    token_ids: TokenIds
    fingerprint: str
    unknown_share: float
    extra: Extra

    def corpus(self, max_seq_length: int, validation_split: float, seed: int) -> Corpus:
        """The sequences, split for training and validation by `split_members`."""
        train, validation = split_members(len(self.offsets) - 1, validation_split, seed)
        return Corpus(
            train=Sequences(self.tokens, self.offsets, train),
            validation=Sequences(self.tokens, self.offsets, validation),
            tokenizer_path=self.directory / "tokenizer.json",
            token_ids=self.token_ids,
            max_seq_length=max_seq_length,
            fingerprint=_with_split(self.fingerprint, validation_split, seed),
            directories=(self.directory,),
            split=(validation_split, seed),
            unknown_share=self.unknown_share,
        )


def with_validation(train: Store, validation: Store, max_seq_length: int) -> Corpus:
    """All of one cache to train on, and all of another, made by the same tokenizer, to evaluate on."""
    return replace(
        train.corpus(max_seq_length, 0.0, 0),
        validation=validation.corpus(max_seq_length, 0.0, 0).train,
        fingerprint=_joined(train.fingerprint, validation.fingerprint),
        directories=(train.directory, validation.directory),
    )


def write_store(
    directory: Path,
    sequences: Iterable[NDArray[Any]],
    ids: TokenIds,
    tokenizer: str,
    unknown: int | None,
    extra: Callable[[], Extra] = Extra,
) -> int:
    """Fill an empty directory, one sequence at a time, and make it survive a power cut.

    Args:
        directory: exists and is empty.
        sequences: token ids, integers (length,).
        ids: of the tokenizer.
        tokenizer: contents of `tokenizer.json`.
        unknown: id of [UNK], if there is one.
        extra: called behind the last sequence.

    Returns:
        How many sequences were written; with 0 the directory is not a valid store.

    Raises:
        OSError: the file system refuses.
    """
    dtype = "<u2" if ids.size <= 1 << 16 else "<u4"
    offsets = array("q", [0])
    text_tokens, unknown_tokens = 0, 0
    with (directory / "tokens.bin").open("wb") as file:
        for sequence in sequences:
            file.write(sequence.astype(dtype).tobytes())
            offsets.append(offsets[-1] + len(sequence))
            text_tokens += int(np.count_nonzero((sequence != ids.cls) & (sequence != ids.sep)))
            unknown_tokens += int(np.count_nonzero(sequence == unknown)) if unknown is not None else 0
    (directory / "offsets.bin").write_bytes(np.asarray(offsets, dtype="<i8").tobytes())
    (directory / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    more = extra()
    columns = {name: f"{name}.bin" for name in more.columns}
    for name, column in more.columns.items():
        (directory / columns[name]).write_bytes(column.astype("<i4").tobytes())
    facts = {
        "dtype": dtype,
        "token_ids": asdict(ids),
        "text_tokens": text_tokens,
        "unknown_tokens": unknown_tokens,
        **({"columns": columns, "facts": dict(more.facts)} if columns or more.facts else {}),
    }
    write_meta(directory, (*_FILES, *columns.values()), facts)
    return len(offsets) - 1


def open_store(directory: Path) -> Store:
    """Open a cache after checking it against its sizes and checksums.

    Raises:
        Damaged: a file is missing, of the wrong size or with other contents.
    """
    with opening(directory) as meta:
        ids = TokenIds(**{**meta["token_ids"], "special": tuple(meta["token_ids"]["special"])})
        tokens = _map(directory / "tokens.bin", meta["dtype"])
        offsets = _map(directory / "offsets.bin", "<i8")
        columns = {name: _map(directory / file, "<i4") for name, file in meta.get("columns", {}).items()}
        extra = Extra(columns, meta.get("facts", {}))
        unknown_share = meta["unknown_tokens"] / max(meta["text_tokens"], 1)
        return Store(directory, tokens, offsets, ids, _fingerprint(meta), unknown_share, extra)


def fingerprint_with(corpus: Corpus, tokenizer: Path) -> str:
    """The fingerprint that a cached corpus would have, had this `tokenizer.json` made its tokens.

    Args:
        corpus: opened from a cache.
        tokenizer: the file.

    Raises:
        OSError: a file cannot be read.
    """
    found = []
    for directory in corpus.directories:
        meta = read_meta(directory)
        meta["files"]["tokenizer.json"] = describe(tokenizer)
        found.append(_fingerprint(meta))
    train, *validation = found
    return _joined(train, *validation) if validation else _with_split(train, *corpus.split)


def _map(path: Path, dtype: str) -> NDArray[Any]:
    return np.memmap(path, mode="r", dtype=dtype).view(np.ndarray)


def _fingerprint(meta: Mapping[str, Any]) -> str:
    names = [name for name in ("dtype", "token_ids", "files", "facts") if name in meta]
    text = json.dumps({name: meta[name] for name in names}, indent=1)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _with_split(fingerprint: str, validation_split: float, seed: int) -> str:
    what = f"{fingerprint} {validation_split} {seed}"
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()


def _joined(train: str, validation: str) -> str:
    what = f"{train} validation {validation}"
    return hashlib.blake2b(what.encode(), digest_size=16).hexdigest()
