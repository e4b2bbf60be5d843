"""The images of a source, one after the other, as they were found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.image_sources import ImageSource
from hvdtrain.core.data.images import ImageSpec
from hvdtrain.core.data.lines import check_digest, file_digest, hash_file, unreadable
from hvdtrain.core.data.records import records
from hvdtrain.core.errors import DataError


@dataclass(frozen=True)
class ImageRecord:
    """An image as it was found.

    Attributes:
        where: its place, for errors.
        image: the content of an image file, or pixels, uint8 (height, width) or (height, width, channels).
        label: the name of its class.
    """

    where: str
    image: bytes | NDArray[np.uint8]
    label: str


def image_records(
    data: ImageSpec, source: ImageSource, digests: Mapping[Path, str] | None = None
) -> Iterator[ImageRecord]:
    """Every image of a source, in an order that is the same on every node.

    Args:
        data: the data section.
        source: of the images.
        digests: what the files' bytes must be; None: anything.

    Raises:
        DataError: a file is missing, unreadable, damaged, or has not what its name says; the message has the
            row where there is one.
        Changed: its bytes are not those of its digest.
    """
    if not source.files:
        yield from _digits()
    for number, path in enumerate(source.files):
        digest = None if digests is None else digests[path]
        if source.labels:
            yield _image_file(path, source.labels[number], digest)
        else:
            yield from (_archive if path.suffix == ".npz" else _table)(path, data, digest)


def _digits() -> Iterator[ImageRecord]:
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)
    for number, (image, label) in enumerate(zip(pixels, found.target.tolist(), strict=True)):
        yield ImageRecord(f"data.dataset digits: row {number}", image, str(label))


def _image_file(path: Path, label: str, digest: str | None) -> ImageRecord:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, "data.folder: ") from None
    if digest is not None:
        check_digest(path, file_digest(content).hexdigest(), digest)
    return ImageRecord(str(path), content, label)


def _table(path: Path, data: ImageSpec, digest: str | None) -> Iterator[ImageRecord]:
    fields = {data.image_field: "data.image_field", data.label_field: "data.label_field"}
    for where, record in records(path, fields, digest):
        image = record[data.image_field]
        # As Hugging Face's Image: the content of a file, or the path of one elsewhere.
        content = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(content, bytes):
            found = f"a path without bytes, {image['path']!r}" if _has_path(image) else type(content).__name__
            raise DataError(
                f"{where}: column {data.image_field!r} should hold the bytes of an image file, or "
                f"{{bytes, path}} with bytes; found {found}"
            )
        yield ImageRecord(where, content, _label(record[data.label_field], where))


def _has_path(image: Any) -> bool:
    return isinstance(image, dict) and isinstance(image.get("path"), str)


def _archive(path: Path, data: ImageSpec, digest: str | None) -> Iterator[ImageRecord]:
    images, labels = (
        _array(path, name, field)
        for name, field in ((data.image_field, "data.image_field"), (data.label_field, "data.label_field"))
    )
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or images.shape[3:] not in ((), (1,), (3,), (4,))
    ):
        raise DataError(
            f"{path}: array {data.image_field!r} is {images.dtype} {images.shape}; expected uint8 (images, "
            "height, width) or (images, height, width, 1, 3 or 4)"
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
        raise DataError(
            f"{path}: array {data.label_field!r} is {labels.dtype} {labels.shape}; expected a whole number "
            f"or a name for each of {len(images)} images"
        )
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        yield ImageRecord(
            f"{path}: row {number}", image[..., 0] if image.shape[2:] == (1,) else image, str(label)
        )
    if digest is not None:
        check_digest(path, hash_file(path), digest)


def _array(path: Path, name: str, field: str) -> NDArray[Any]:
    try:
        # What NumPy would unpickle could run code.
        with np.load(path, allow_pickle=False) as archive:
            if name in archive:
                found: NDArray[Any] = archive[name]
                return found
            names = ", ".join(archive.files) or "none"
    except FileNotFoundError as error:
        raise unreadable(path, error) from None
    except Exception as error:
        told = error.strerror if isinstance(error, OSError) and error.strerror else "other content"
        raise DataError(
            f"{path}: cannot be read as an archive of arrays ({told}); expected what numpy.savez writes: "
            "arrays of numbers or text, and no Python objects"
        ) from None
    raise DataError(f"{path}: no array {name!r} (arrays here: {names}); set {field} to the one that is meant")


def _label(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        found = "nothing" if value is None else f"{value!r}, {type(value).__name__}"
        raise DataError(f"{where}: a label is a whole number or a name; found {found}")
    return str(value)
