"""Images from folders, Parquet, archives and scikit-learn: the same pixels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoImageProcessor

from hvdtrain.core.data.image_cache import prepare_images
from hvdtrain.core.data.images import Normalisation
from hvdtrain.core.errors import DataError
from tests.core.data.pictures import (
    NAMES,
    SIZE,
    as_archive,
    as_parquet,
    content_of,
    folder,
    image_of,
    nothing_half_written,
    palette,
    pixels_of,
    prepared,
    six,
    spec,
)


def as_folder(root: Path) -> dict[str, Any]:
    return {"folder": str(folder(root / "images", six()))}


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
