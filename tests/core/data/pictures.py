"""Small images, and data sections that name them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from hvdtrain.core.data.image_cache import prepare_images
from hvdtrain.core.data.images import ImageSpec

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


def as_parquet(root: Path, plain: bool = False) -> dict[str, Any]:
    contents = [content_of(image_of(n)) for n in range(6)]
    images: Any = contents if plain else [{"bytes": c, "path": f"{n}.png"} for n, c in enumerate(contents)]
    table = pa.table({"image": images, "label": [NAMES[n // 3] for n in range(6)]})
    parquet.write_table(table, root / "images.parquet", row_group_size=4)
    return {"files": (str(root / "images.parquet"),)}


def as_archive(root: Path) -> dict[str, Any]:
    labels = np.array([NAMES[n // 3] for n in range(6)])
    np.savez(root / "images.npz", x=np.stack([pixels_of(n) for n in range(6)]), y=labels)
    return {"files": (str(root / "images.npz"),), "image_field": "x", "label_field": "y"}


def palette(transparent: bool = False) -> bytes:
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return content_of(image, "PNG", **({"transparency": 1} if transparent else {}))


def nothing_half_written(root: Path) -> bool:
    return {path.suffix for path in (root / "cache").iterdir()} <= {".lock", ".json"}
