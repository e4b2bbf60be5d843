"""From documents' tokens to sequences of [CLS] … [SEP]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]


def pack(documents: Iterable[list[int]], max_seq_length: int, cls: int, sep: int) -> Iterator[Tokens]:
    """Full sequences from documents joined by [SEP]; only the last may be shorter.

    Args:
        documents: token ids of each document, without special tokens; empty ones are passed over.
        max_seq_length: length of a full sequence with its [CLS] and [SEP].
        cls: id of [CLS].
        sep: id of [SEP].

    Yields:
        int64 (length,), length from 3 to `max_seq_length`.
    """
    room = max_seq_length - 2
    rest: list[int] = []
    joined = False
    for document in documents:
        if not document:
            continue
        if joined:
            rest.append(sep)
        joined = True
        rest.extend(document)
        full = len(rest) - len(rest) % room
        for start in range(0, full, room):
            yield _framed(rest[start : start + room], cls, sep)
        del rest[:full]
    if rest:
        yield _framed(rest, cls, sep)


def split(documents: Iterable[list[int]], max_seq_length: int, cls: int, sep: int) -> Iterator[Tokens]:
    """Sequences of one document each, cut at `max_seq_length`, so ragged; arguments and result as `pack`."""
    room = max_seq_length - 2
    for document in documents:
        for start in range(0, len(document), room):
            yield _framed(document[start : start + room], cls, sep)


def _framed(tokens: list[int], cls: int, sep: int) -> Tokens:
    return np.array([cls, *tokens, sep], dtype=np.int64)
