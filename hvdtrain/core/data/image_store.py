"""One cache directory of images: pixels of one size and numbers of classes, memory-mapped."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.stored_files import opening, write_meta

_PIXELS, _LABELS = "pixels.bin", "labels.bin"


@dataclass(frozen=True, eq=False)
class ImageStore:
    """An open cache.

    Attributes:
        pixels: uint8 (images, height, width, channels), memory-mapped.
        labels: of each image, the place of its class in `names`, int32 (images,), memory-mapped.
        names: of the classes that were seen, in the order in which they were.
        fingerprint: hash of the contents.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]
    names: tuple[str, ...]
    fingerprint: str


def write_images(
    directory: Path, images: Iterable[tuple[NDArray[np.uint8], str]], shape: tuple[int, int, int]
) -> int:
    """Fill an empty directory, one image at a time, and make it survive a power cut.

    Args:
        directory: exists and is empty.
        images: pixels of that shape, and the name of a class.
        shape: height, width and channels of an image.

    Returns:
        How many images were written; with 0 the directory is not a valid store.

    Raises:
        OSError: the file system refuses.
    """
    labels, names = array("i"), dict[str, int]()
    with (directory / _PIXELS).open("wb") as file:
        for pixels, label in images:
            file.write(pixels.tobytes())
            labels.append(names.setdefault(label, len(names)))
    (directory / _LABELS).write_bytes(np.asarray(labels, "<i4").tobytes())
    write_meta(directory, (_PIXELS, _LABELS), {"shape": shape, "names": list(names)})
    return len(labels)


def open_images(directory: Path) -> ImageStore:
    """Open a cache after checking it against its sizes and checksums.

    Raises:
        Damaged: a file is missing, of the wrong size or with other contents.
    """
    with opening(directory) as meta:
        pixels, labels = (
            np.memmap(directory / name, mode="r", dtype=dtype).view(np.ndarray)
            for name, dtype in ((_PIXELS, np.uint8), (_LABELS, "<i4"))
        )
        text = json.dumps(meta, sort_keys=True).encode()
        fingerprint = hashlib.blake2b(text, digest_size=16).hexdigest()
        return ImageStore(pixels.reshape(-1, *meta["shape"]), labels, tuple(meta["names"]), fingerprint)
