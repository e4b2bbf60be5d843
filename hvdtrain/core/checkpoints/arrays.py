"""Arrays in safetensors files, one at a time: neither who writes a file nor who reads it holds it whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

# Registers bfloat16 with NumPy, which safetensors asks for it.
import ml_dtypes  # noqa: F401
import numpy as np
from safetensors import SafetensorError, safe_open

from hvdtrain.core.checkpoints.manifest import FileRecord

# The format's names by NumPy's, in the order of safetensors' own writer: wide ones first, so that each array
# lies at a multiple of its width.
_DTYPES = {
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
    "float32": "F32",
    "uint32": "U32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "uint16": "U16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_ALIGNMENT = 8
_CHUNK = 2**20


class Kind(NamedTuple):
    """What is known of an array before it is there."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, array: np.ndarray) -> Kind:
        """That of an array."""
        return cls(array.shape, array.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of such an array."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class ArrayStream:
    """What one file is to hold.

    Attributes:
        kinds: of every array, by name; those of one dtype lie in the file in this order.
        arrays: each of them once, with its name, made when it is asked for; in any order, but what comes
            before its turn is read again for the file's hash.
    """

    kinds: Mapping[str, Kind]
    arrays: Iterable[tuple[str, np.ndarray]]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> ArrayStream:
        """Arrays that are there already."""
        return cls({name: Kind.of(array) for name, array in arrays.items()}, arrays.items())

    def snapshot(self) -> ArrayStream:
        """The same arrays, all made now: they stay as they are while training goes on."""
        return ArrayStream(self.kinds, [*self.arrays])


def write_arrays(path: Path, stream: ArrayStream) -> FileRecord:
    """Write a safetensors file from arrays that come one at a time.

    Args:
        path: of the file.
        stream: no array of it is kept.

    Returns:
        The file's size and hash.

    Raises:
        SafetensorError: an array is missing, is another than was said, or has a dtype that the format lacks.
    """
    header, ends = _header(stream.kinds)
    missing = dict(stream.kinds)
    digest, hashed = hashlib.blake2b(header), len(header)
    with path.open("w+b") as file:
        file.write(header)
        for name, array in stream.arrays:
            expected, found = missing.pop(name, None), Kind.of(array)
            if expected is None or found != expected:
                raise SafetensorError(f"{name}: expected {expected}, found {found}")
            file.seek(len(header) + ends[name] - expected.nbytes)
            # As bytes, which every dtype has.
            content = np.asarray(array, order="C").reshape(-1).view(np.uint8).data
            file.write(content)
            if file.tell() - len(content) == hashed:
                digest.update(content)
                hashed += len(content)
            # It may be a view of more, which would otherwise stay until the next one is made.
            del array, content
        if missing:
            raise SafetensorError(f"{', '.join(missing)}: expected, and never came")
        # What came before its turn.
        file.seek(hashed)
        while part := file.read(_CHUNK):
            digest.update(part)
        return FileRecord(file.tell(), digest.hexdigest())


class SavedArrays(Mapping[str, np.ndarray]):
    """The arrays of a safetensors file by name; each is read whenever it is asked for.

    Attributes:
        shapes: of each, known without reading it.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            OSError: there is no such file.
            SafetensorError: the file is damaged, or not as long as its header says.
        """
        self._opened = safe_open(path, framework="np")
        names = self._opened.keys()
        self.shapes = {name: tuple(self._opened.get_slice(name).get_shape()) for name in names}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        found: np.ndarray = self._opened.get_tensor(name)
        return found

    def row(self, name: str, index: int) -> np.ndarray:
        """What lies at this place of an array's first axis; the rest of it is not read."""
        found: np.ndarray = self._opened.get_slice(name)[index : index + 1][0, ...]
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _header(kinds: Mapping[str, Kind]) -> tuple[bytes, dict[str, int]]:
    """The file's beginning, and where behind it each array ends."""
    dtypes = {name: kind.dtype.name for name, kind in kinds.items()}
    order = {dtype: place for place, dtype in enumerate(_DTYPES)}
    for name, dtype in dtypes.items():
        if dtype not in order:
            raise SafetensorError(f"{name}: safetensors has no {dtype}")
    names = sorted(kinds, key=lambda name: order[dtypes[name]])
    ends = [*accumulate((kinds[name].nbytes for name in names), initial=0)]
    record: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, start, end in zip(names, ends, ends[1:], strict=False):
        record[name] = {
            "dtype": _DTYPES[dtypes[name]],
            "shape": kinds[name].shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, dict(zip(names, ends[1:], strict=True))
