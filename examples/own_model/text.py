"""A text file as a map-style dataset: pieces of bytes, and the byte behind each."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np


class Pieces:
    """Pieces of a text that lie one after the other."""

    def __init__(self, text: bytes, length: int) -> None:
        self._bytes, self._length = np.frombuffer(text, np.uint8), length

    def __len__(self) -> int:
        return (len(self._bytes) - 1) // self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = index * self._length
        piece = self._bytes[start : start + self._length + 1].astype(np.int64)
        return {"input_ids": piece[:-1], "labels": piece[1:]}


def make(file: str | None = None, length: int = 64) -> Pieces:
    """The pieces of a file, or of the language reference that comes with Python.

    Args:
        file: a path.
        length: bytes of a piece.
    """
    text = Path(file).read_bytes() if file else "\n".join(topics.values()).encode()
    return Pieces(text, length)
