"""Where images come from: folders of classes, Parquet, Arrow, NumPy's archives, and scikit-learn's digits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.core.data.images import ImageSpec
from hvdtrain.core.data.lines import unreadable
from hvdtrain.core.data.records import class_names
from hvdtrain.core.data.sources import source_files, validation_files
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import user_path

# What the names of files in a folder of classes end with, in any case.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".jp2")
_TRAIN, _VALIDATION = "train", ("validation", "val", "valid", "test")


@dataclass(frozen=True)
class ImageSource:
    """The images of a split.

    Attributes:
        told: what it is, for the user.
        files: in the order of their images; none for scikit-learn's digits.
        labels: the class of each file; none where files hold many images.
    """

    told: str
    files: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()


def train_source(data: ImageSpec) -> ImageSource:
    """The images to train on.

    Raises:
        DataError: a folder or a pattern has none, or holds what is no image.
    """
    if data.dataset is not None:
        return ImageSource(f"data.dataset {data.dataset}")
    if data.folder is not None:
        return _folder(_splits(data)[0])
    return ImageSource(f"data.files {', '.join(data.files)}", source_files(data))


def validation_source(data: ImageSpec) -> ImageSource | None:
    """The images to evaluate on; None where they are a share of those to train on.

    Raises:
        DataError: as `train_source`.
    """
    if data.folder is not None:
        found = _splits(data)[1]
        return None if found is None else _folder(found)
    files = () if data.dataset is not None else validation_files(data)
    told = f"data.validation_files {', '.join(data.validation_files or data.files)}"
    return ImageSource(told, files) if files else None


def named_classes(data: ImageSpec, source: ImageSource) -> tuple[str, ...]:
    """The classes in the order of their numbers: the spec's, or those of the files' own ClassLabel; or none.

    Raises:
        DataError: a file cannot be read.
    """
    if data.class_names or not source.files or source.labels or source.files[0].suffix == ".npz":
        return data.class_names
    return class_names(source.files[0], data.label_field) or ()


def _splits(data: ImageSpec) -> tuple[Path, Path | None]:
    root = user_path(data.folder or "", "data.folder:", DataError).absolute()
    if not root.is_dir():
        raise DataError(f"data.folder: {root}: no such folder")
    if not (root / _TRAIN).is_dir():
        return root, None
    kept = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    if kept is not None and data.validation_split:
        raise DataError(
            f"data.validation_split {data.validation_split}: {kept} is what is evaluated on; leave it out"
        )
    return root / _TRAIN, kept


def _folder(root: Path) -> ImageSource:
    classes = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not _is_hidden(entry.name))
    if not classes:
        raise DataError(f"data.folder: {root} has no folders; expected one for each class, with its images")
    files: list[Path] = []
    labels: list[str] = []
    for name in classes:
        found = list(_files_below(root / name))
        if not found:
            raise DataError(f"data.folder: {root / name} is the folder of a class and has no images")
        files += found
        labels += [name] * len(found)
    return ImageSource(f"data.folder {root}", tuple(files), tuple(labels))


def _files_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename), error, "data.folder: ")

    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for path in (Path(parent, name) for name in sorted(names) if not _is_hidden(name)):
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(
                    f"data.folder: {path} is no image (names of images end in {', '.join(IMAGE_SUFFIXES)}); "
                    "take it out of the class's folder"
                )
            # A pipe would be waited for.
            if not path.is_file():
                raise DataError(f"data.folder: {path} is not a regular file")
            yield path


def _is_hidden(name: str) -> bool:
    return name.startswith(".")
