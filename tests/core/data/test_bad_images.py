"""What is wrong with images and their files has one message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from hvdtrain.core.data.image_cache import prepare_images
from hvdtrain.core.errors import DataError
from tests.core.data.pictures import (
    SIZE,
    as_archive,
    as_parquet,
    content_of,
    folder,
    image_of,
    nothing_half_written,
    palette,
    six,
    spec,
)


def bomb() -> bytes:
    """A small file that says it has 400 million pixels."""
    head = bytearray(content_of(Image.new("L", (1, 1)), "BMP"))
    head[18:26] = (20000).to_bytes(4, "little") * 2
    return bytes(head)


def with_16_bits() -> bytes:
    return content_of(Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6)), "PNG")


def transparent() -> Image.Image:
    found = image_of(0).convert("RGBA")
    found.putpixel((0, 0), (0, 0, 0, 254))
    return found


BAD_IMAGES: dict[str, tuple[Image.Image | bytes, str]] = {
    "text": (b"no image", "cannot be decoded as an image: it is no image"),
    "empty": (b"", "cannot be decoded as an image"),
    "cut": (content_of(image_of(0, 64))[:2000], "cannot be decoded as an image"),
    "cut JPEG": (content_of(image_of(0, 64), "JPEG")[:2000], "cannot be decoded as an image"),
    "bomb": (bomb(), "cannot be decoded as an image: .*exceeds limit"),
    "grey": (image_of(0, channels=1), "the image is grey, and model.num_channels is 3"),
    "16 bits": (with_16_bits(), "above 8 bits"),
    "transparent": (transparent(), "transparent.*convert_channels"),
    "transparent palette": (palette(transparent=True), "transparent"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n", "cannot be decoded"),
}


@pytest.mark.parametrize("bad", BAD_IMAGES)
def test_a_bad_image_in_a_folder_is_named(bad: str, tmp_path: Path) -> None:
    image, told = BAD_IMAGES[bad]
    root = folder(tmp_path / "f", {**six(), "dog/9.png": image})
    with pytest.raises(DataError, match=rf"f/dog/9\.png: .*{told}"):
        prepare_images(spec(tmp_path, folder=str(root)), SIZE, 3)
    assert nothing_half_written(tmp_path)


@pytest.mark.parametrize("bad", BAD_IMAGES)
def test_a_bad_image_in_a_table_is_named_with_its_row(bad: str, tmp_path: Path) -> None:
    image, told = BAD_IMAGES[bad]
    content = image if isinstance(image, bytes) else content_of(image)
    images = [content_of(image_of(0)), content]
    parquet.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=rf"t\.parquet: row 1: .*{told}"):
        prepare_images(spec(tmp_path, files=(str(tmp_path / "t.parquet"),)), SIZE, 3)
    assert nothing_half_written(tmp_path)


def test_an_rgb_image_among_grey_ones_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "f", {"a/0.png": image_of(0, channels=1), "a/1.png": image_of(1)})
    with pytest.raises(DataError, match=r"a/1\.png: the image is RGB, and model\.num_channels is 1"):
        prepare_images(spec(tmp_path, folder=str(root)), SIZE, 1)


def tabled(root: Path, **columns: Any) -> dict[str, Any]:
    parquet.write_table(pa.table(columns), root / "t.parquet")
    return {"files": (str(root / "t.parquet"),)}


def archived(root: Path, **arrays: Any) -> dict[str, Any]:
    np.savez(root / "a.npz", **arrays)
    return {"files": (str(root / "a.npz"),)}


def text_beside(root: Path) -> dict[str, Any]:
    return {"folder": str(folder(root / "f", {**six(), "cat/notes.txt": b"seen"}))}


def empty_class(root: Path) -> dict[str, Any]:
    (folder(root / "f", six()) / "bird").mkdir()
    return {"folder": str(root / "f")}


def no_classes(root: Path) -> dict[str, Any]:
    return {"folder": str(folder(root / "f", {"0.png": image_of(0)}))}


def split_twice(root: Path) -> dict[str, Any]:
    folder(root / "f" / "train", six())
    folder(root / "f" / "test", six())
    return {"folder": str(root / "f"), "validation_split": 0.1}


def cut_table(root: Path) -> dict[str, Any]:
    found = as_parquet(root)
    path = Path(found["files"][0])
    path.write_bytes(path.read_bytes()[:-20])
    return found


def cut_archive(root: Path) -> dict[str, Any]:
    found = as_archive(root)
    path = Path(found["files"][0])
    path.write_bytes(path.read_bytes()[:-100])
    return found


def pickled(root: Path) -> dict[str, Any]:
    return archived(root, image=np.array([{}], dtype=object), label=np.array([0]))


ONE = content_of(image_of(0))
BAD_FILES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "missing folder": (lambda root: {"folder": str(root / "none")}, "no such folder"),
    "no classes": (no_classes, "has no folders"),
    "empty class": (empty_class, "f/bird is the folder of a class and has no images"),
    "text beside": (text_beside, r"cat/notes\.txt is no image"),
    "split twice": (split_twice, r"f/test is what is evaluated on"),
    "missing file": (lambda root: {"files": (str(root / "x.npz"),)}, "matches no file"),
    "other file": (lambda root: {"files": (str(folder(root, {"a.zip": b""}) / "a.zip"),)}, "must end in"),
    "cut table": (cut_table, r"images\.parquet: not a Parquet file, or damaged"),
    "no column": (lambda root: tabled(root, picture=[ONE], label=[0]), "image.*data.image_field"),
    "path alone": (
        lambda root: tabled(root, image=[{"bytes": None, "path": "a.png"}], label=[0]),
        r"row 0: .*a path without bytes, 'a\.png'",
    ),
    "numbers": (lambda root: tabled(root, image=[1.5], label=[0]), "row 0: .*found float"),
    "no image": (lambda root: tabled(root, image=[ONE, None], label=[0, 0]), "row 1: .*found NoneType"),
    "no label": (lambda root: tabled(root, image=[ONE, ONE], label=[0, None]), "row 1: .*found nothing"),
    "label of a fraction": (
        lambda root: tabled(root, image=[ONE], label=[0.5]),
        r"row 0: .*found 0\.5, float",
    ),
    "no rows": (
        lambda root: tabled(root, image=pa.array([], pa.binary()), label=pa.array([], pa.int64())),
        "no images found",
    ),
    "cut archive": (cut_archive, r"images\.npz: cannot be read as an archive of arrays"),
    "pickled": (pickled, r"a\.npz: cannot be read as an archive of arrays .* no Python objects"),
    "no array": (
        lambda root: archived(root, x=[1]),
        r"no array 'image' \(arrays here: x\); set data.image_field",
    ),
    "floats": (
        lambda root: archived(root, image=np.zeros((2, 3, 3)), label=[0, 1]),
        r"array 'image' is float64 \(2, 3, 3\); expected uint8",
    ),
    "flat": (lambda root: archived(root, image=np.zeros((2, 9), np.uint8), label=[0, 1]), "expected uint8"),
    "too few labels": (
        lambda root: archived(root, image=np.zeros((2, 3, 3), np.uint8), label=[0]),
        r"array 'label' is int64 \(1,\); expected a whole number or a name for each of 2 images",
    ),
    "no labels": (
        lambda root: archived(root, image=np.zeros((2, 3, 3), np.uint8), label=[0.5, 1.0]),
        "expected a whole number",
    ),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_bad_files_have_one_message(bad: str, tmp_path: Path) -> None:
    make, told = BAD_FILES[bad]
    data = spec(tmp_path, **make(tmp_path))
    with pytest.raises(DataError, match=told) as caught:
        prepare_images(data, SIZE, 3)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists() or nothing_half_written(tmp_path)
