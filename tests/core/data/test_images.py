"""Images from folders, Parquet, archives and scikit-learn: the same pixels, one message for what is wrong."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from pyarrow import parquet
from transformers import AutoImageProcessor

from hvdtrain.core.data.image_cache import prepare_images
from hvdtrain.core.data.images import ImageSpec, Normalisation
from hvdtrain.core.errors import DataError

SIZE = 6
NAMES = ("cat", "dog")


def pixels_of(number: int, side: int = SIZE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (side, side, channels), dtype=np.uint8)


def image_of(number: int, side: int = SIZE, channels: int = 3) -> Image.Image:
    found = pixels_of(number, side, channels)
    return Image.fromarray(found[..., 0] if channels == 1 else found)


def content_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def spec(root: Path, **fields: Any) -> ImageSpec:
    return ImageSpec(cache_dir=str(root / "cache"), **fields)


def folder(root: Path, images: dict[str, Image.Image | bytes]) -> Path:
    for name, image in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image if isinstance(image, bytes) else content_of(image))
    return root


def six() -> dict[str, Image.Image | bytes]:
    return {f"{NAMES[n // 3]}/{n}.png": image_of(n) for n in range(6)}


def prepared(data: ImageSpec, size: int = SIZE, channels: int = 3) -> tuple[np.ndarray, list[str]]:
    [(_, store)] = prepare_images(data, size, channels)
    return store.pixels, [store.names[n] for n in store.labels]


def as_folder(root: Path) -> dict[str, Any]:
    return {"folder": str(folder(root / "images", six()))}


def as_parquet(root: Path, plain: bool = False) -> dict[str, Any]:
    contents = [content_of(image_of(n)) for n in range(6)]
    images: Any = contents if plain else [{"bytes": c, "path": f"{n}.png"} for n, c in enumerate(contents)]
    table = pa.table({"image": images, "label": [NAMES[n // 3] for n in range(6)]})
    parquet.write_table(table, root / "images.parquet", row_group_size=4)
    return {"files": (str(root / "images.parquet"),)}


def as_plain_parquet(root: Path) -> dict[str, Any]:
    return as_parquet(root, plain=True)


def hugging_face() -> Dataset:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=list(NAMES))})
    return Dataset.from_dict(
        {"image": [image_of(n) for n in range(6)], "label": [n // 3 for n in range(6)]}, features=features
    )


def as_parquet_of_hugging_face(root: Path) -> dict[str, Any]:
    hugging_face().to_parquet(str(root / "train.parquet"))
    return {"files": (str(root / "*.parquet"),)}


def as_saved_to_disk(root: Path) -> dict[str, Any]:
    hugging_face().save_to_disk(str(root / "saved"))
    return {"files": (str(root / "saved"),)}


def as_archive(root: Path) -> dict[str, Any]:
    labels = np.array([NAMES[n // 3] for n in range(6)])
    np.savez(root / "images.npz", x=np.stack([pixels_of(n) for n in range(6)]), y=labels)
    return {"files": (str(root / "images.npz"),), "image_field": "x", "label_field": "y"}


KINDS = (
    as_folder,
    as_parquet,
    as_plain_parquet,
    as_parquet_of_hugging_face,
    as_saved_to_disk,
    as_archive,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_images(
    kind: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    data = spec(tmp_path, **kind(tmp_path))
    pixels, labels = prepared(data)
    np.testing.assert_array_equal(pixels, np.stack([pixels_of(n) for n in range(6)]))
    assert labels == [NAMES[n // 3] for n in range(6)]
    lines: list[str] = []
    [(_, again)] = prepare_images(data, SIZE, 3, lines.append)
    assert not lines, "decoded once"
    np.testing.assert_array_equal(again.pixels, pixels)


def test_folders_of_splits_are_recognised(tmp_path: Path) -> None:
    for name in ("val", "validation"):
        root = tmp_path / name
        folder(root / "train", six())
        folder(root / name, {f"dog/{n}.png": image_of(n) for n in (7, 8)})
        (_, train), (_, kept) = prepare_images(spec(root, folder=str(root)), SIZE, 3)
        assert (len(train.labels), len(kept.labels), kept.names) == (6, 2, ("dog",))
        np.testing.assert_array_equal(kept.pixels[1], pixels_of(8))


def test_files_to_evaluate_on_may_be_others_or_a_split(tmp_path: Path) -> None:
    data = spec(tmp_path, **as_archive(tmp_path))
    np.savez(tmp_path / "kept.npz", x=pixels_of(9)[None], y=np.array(["dog"]))
    data = data.model_copy(update={"validation_files": (str(tmp_path / "kept.npz"),)})
    assert [len(store.labels) for _, store in prepare_images(data, SIZE, 3)] == [6, 1]
    both = DatasetDict({"train": hugging_face(), "test": hugging_face().select(range(2)).flatten_indices()})
    both.save_to_disk(str(tmp_path / "both"))
    data = spec(tmp_path, files=(str(tmp_path / "both"),))
    assert [len(store.labels) for _, store in prepare_images(data, SIZE, 3)] == [6, 2]


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "nearest"])
def test_images_are_resized_as_the_saved_preprocessor_does(resample: Any, tmp_path: Path) -> None:
    images = [
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (9 + n, 20, 3), dtype=np.uint8))
        for n in range(3)
    ]
    data = spec(
        tmp_path,
        folder=str(folder(tmp_path / "f", {f"a/{n}.png": image for n, image in enumerate(images)})),
        resample=resample,
        image_mean=(0.1, 0.2, 0.3),
        image_std=0.25,
    )
    normalisation = Normalisation.of(data, 3)
    for name, text in normalisation.preprocessor(SIZE, data).items():
        (tmp_path / name).write_text(text)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(images, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    pixels, _ = prepared(data)
    constants = normalisation.inputs
    np.testing.assert_allclose(
        pixels * constants["pixel_scale"] + constants["pixel_offset"], theirs, rtol=0, atol=1e-5
    )


def test_images_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    image = image_of(1)
    exif = Image.Exif()
    exif[0x0112] = 6
    root = folder(tmp_path / "f", {"a/0.png": content_of(image, "PNG", exif=exif)})
    pixels, _ = prepared(spec(tmp_path, folder=str(root)))
    np.testing.assert_array_equal(pixels[0], np.rot90(pixels_of(1), -1))


def palette(transparent: bool = False) -> bytes:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return content_of(image, "PNG", **({"transparency": 1} if transparent else {}))


def test_what_loses_nothing_is_converted(tmp_path: Path) -> None:
    opaque = image_of(0).convert("RGBA")
    images = {
        "a/0.png": opaque,
        "a/1.png": palette(),
        "a/2.jpg": content_of(image_of(0).convert("CMYK"), "JPEG"),
    }
    pixels, _ = prepared(spec(tmp_path, folder=str(folder(tmp_path / "f", images))))
    np.testing.assert_array_equal(pixels[0], pixels_of(0))
    assert {tuple(pixel) for pixel in pixels[1].reshape(-1, 3).tolist()} == {(200, 100, 50)}
    assert np.abs(pixels[2].astype(int) - pixels_of(0)).mean() < 60
    bits = Image.fromarray(pixels_of(1, channels=1)[..., 0] > 100)
    grey, _ = prepared(spec(tmp_path, folder=str(folder(tmp_path / "g", {"a/0.png": bits}))), channels=1)
    np.testing.assert_array_equal(grey[0, :, :, 0], np.where(pixels_of(1, channels=1)[..., 0] > 100, 255, 0))


def test_channels_are_converted_when_asked(tmp_path: Path) -> None:
    clear = image_of(0).convert("RGBA")
    clear.putalpha(7)
    images = {"a/0.png": image_of(0, channels=1), "a/1.png": clear, "a/2.png": palette(transparent=True)}
    data = spec(tmp_path, folder=str(folder(tmp_path / "f", images)), convert_channels=True)
    pixels, _ = prepared(data)
    np.testing.assert_array_equal(pixels[0], pixels_of(0, channels=1).repeat(3, axis=2))
    np.testing.assert_array_equal(pixels[1], pixels_of(0))
    grey, _ = prepared(data, channels=1)
    np.testing.assert_array_equal(grey[1, :, :, 0], np.asarray(image_of(0).convert("L")))


def test_digits_are_resized(tmp_path: Path) -> None:
    pixels, labels = prepared(spec(tmp_path, dataset="digits"), 16, 1)
    assert pixels.shape == (1797, 16, 16, 1)
    assert labels[:4] == ["0", "1", "2", "3"]


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


def nothing_half_written(root: Path) -> bool:
    return {path.suffix for path in (root / "cache").iterdir()} <= {".lock", ".json"}


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


def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    data = spec(tmp_path, **as_folder(tmp_path))
    pixels, _ = prepared(data)
    expected = pixels.copy()
    [file] = (tmp_path / "cache").glob("*/pixels.bin")
    file.write_bytes(file.read_bytes()[:-1])
    lines: list[str] = []
    [(_, store)] = prepare_images(data, SIZE, 3, lines.append)
    assert "damaged" in lines[0]
    np.testing.assert_array_equal(store.pixels, expected)


def test_a_change_of_an_image_or_of_its_class_is_noticed(tmp_path: Path) -> None:
    data = spec(tmp_path, **as_folder(tmp_path))
    [(_, first)] = prepare_images(data, SIZE, 3)
    (tmp_path / "images" / "cat" / "0.png").write_bytes(content_of(image_of(77)))
    [(_, second)] = prepare_images(data, SIZE, 3)
    np.testing.assert_array_equal(second.pixels[0], pixels_of(77))
    shutil.move(tmp_path / "images" / "cat" / "2.png", tmp_path / "images" / "dog" / "2.png")
    [(_, third)] = prepare_images(data, SIZE, 3)
    assert third.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3


def test_where_files_lie_does_not_matter(tmp_path: Path) -> None:
    prints = []
    for node in ("one", "two"):
        data = spec(tmp_path / node, **as_folder(tmp_path / node))
        prints += [store.fingerprint for _, store in prepare_images(data, SIZE, 3)]
    assert prints[0] == prints[1]


def _prepare(root: str, barrier: Any, found: Any) -> None:
    lines: list[str] = []
    barrier.wait()
    [(_, store)] = prepare_images(spec(Path(root), folder=f"{root}/images"), SIZE, 3, lines.append)
    found.put((store.fingerprint, json.dumps(lines)))


def test_one_process_of_several_decodes(tmp_path: Path) -> None:
    as_folder(tmp_path)
    context = get_context("fork")
    barrier, found = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_prepare, args=(str(tmp_path), barrier, found)) for _ in range(3)]
    for process in processes:
        process.start()
    results = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len({fingerprint for fingerprint, _ in results}) == 1
    assert sum("decoding" in lines for _, lines in results) == 1


def test_an_image_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = spec(tmp_path, **as_folder(tmp_path))
    from hvdtrain.core.data import image_cache

    def edited(*arguments: Any, kept: Any = image_cache.image_records) -> Any:
        (tmp_path / "images" / "dog" / "4.png").write_bytes(content_of(image_of(5)))
        return kept(*arguments)

    monkeypatch.setattr(image_cache, "image_records", edited)
    with pytest.raises(DataError, match=r"dog/4\.png: changed while it was read"):
        prepare_images(data, SIZE, 3)
    assert nothing_half_written(tmp_path)
