"""The node-local cache of images: decoded and resized once per node, opened by every rank of the node."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.building import INDEX, Recipe, cache_directory, open_or_build, silent
from hvdtrain.core.data.decoding import Decoder, decoding
from hvdtrain.core.data.hashing import Contents, hash_files, hash_texts
from hvdtrain.core.data.image_records import ImageRecord, image_records
from hvdtrain.core.data.image_sources import ImageSource, train_source, validation_source
from hvdtrain.core.data.image_store import ImageStore, open_images, write_images
from hvdtrain.core.data.images import ImageSpec
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.host import usable_cores

FORMAT = 1
# Images that are decoded at once, for each thread.
_WAITING = 4


def prepare_images(
    data: ImageSpec, size: int, channels: int, announce: Callable[[str], None] = silent
) -> list[tuple[ImageSource, ImageStore]]:
    """Open the images; decode and resize them first if this node has not done so.

    The cache is named by a hash of the files' bytes, their classes and what is made of them, so a change of
    any of these makes a new one and a change of seed, split or augmentation does not. What is decoded is
    hashed again, and refused if it is not what the name says.

    Args:
        data: the data section.
        size: height and width, in pixels.
        channels: 1, grey, or 3, RGB.
        announce: called with a line for the user when the call will take a while.

    Returns:
        The images to train on and, unless a share of these is, those to evaluate on.

    Raises:
        DataError: an image or a file cannot be used, or the cache cannot be written.
    """
    root = cache_directory(data.cache_dir)
    # Before hours are spent on the others.
    sources = train_source(data), validation_source(data)
    decoder = Decoder(size, channels, data.resample, data.convert_channels)
    return [
        (source, open_or_build(_recipe(data, source, decoder, root), root, announce))
        for source in sources
        if source is not None
    ]


def where_is(data: ImageSpec, source: ImageSource, label: str) -> str:
    """The place of the first image of a class, for errors."""
    return next(record.where for record in image_records(data, source) if record.label == label)


def _recipe(data: ImageSpec, source: ImageSource, decoder: Decoder, root: Path) -> Recipe[ImageStore]:
    contents = hash_files(source.files, root / INDEX)
    fields = f"{data.image_field} {data.label_field}" if not source.labels else "folder"
    texts = [
        f"images {FORMAT}",
        f"Pillow {version('pillow')}",
        contents.digest if source.files else f"{data.dataset} {version('scikit-learn')}",
        repr(decoder),
        fields,
        *source.labels,
    ]

    def done(store: ImageStore) -> str:
        return f"{len(store.labels):,} images of {len(store.names)} classes"

    count = f"{len(source.files):,} file(s) of {source.told}" if source.files else source.told
    fill = partial(_decode, data, source, decoder, contents)
    return Recipe(hash_texts(texts)[:32], open_images, fill, f"decoding {count}", done)


def _decode(
    data: ImageSpec, source: ImageSource, decoder: Decoder, contents: Contents, directory: Path
) -> None:
    records = image_records(data, source, contents.files)
    shape = (decoder.size, decoder.size, decoder.channels)
    with decoding():
        if not write_images(directory, _decoded(records, decoder), shape):
            raise DataError(f"{source.told}: no images found, so there is nothing to learn")


def _decoded(records: Iterator[ImageRecord], decoder: Decoder) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Pixels and classes in the order of the records; Pillow decodes several images at once."""
    waiting: deque[tuple[Future[NDArray[np.uint8]], str]] = deque()
    threads = usable_cores()
    with ThreadPoolExecutor(threads) as pool:
        for record in records:
            waiting.append((pool.submit(decoder, record), record.label))
            if len(waiting) > _WAITING * threads:
                pixels, label = waiting.popleft()
                yield pixels.result(), label
        for pixels, label in waiting:
            yield pixels.result(), label
