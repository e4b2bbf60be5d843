"""Image files and arrays as pixels of one size, with the channels that a model takes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from hvdtrain.core.data.image_records import ImageRecord
from hvdtrain.core.errors import DataError

# Of what Pillow knows, those that hold pixels and run no other program.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_GREY, _ALPHA = ("1", "L", "LA"), ("LA", "RGBA")
_COLOUR = ("RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")


@dataclass(frozen=True)
class Decoder:
    """Makes pixels.

    Attributes:
        size: height and width.
        channels: 1, grey, or 3, RGB.
        resample: Pillow's filter for other sizes.
        convert: whether grey images may become RGB, RGB ones grey, and transparency be dropped.
    """

    size: int
    channels: int
    resample: str
    convert: bool

    def __call__(self, record: ImageRecord) -> NDArray[np.uint8]:
        """The pixels of an image, uint8 (size, size, channels).

        It is turned as its EXIF data says. Of several frames it is the first.

        Raises:
            DataError: it cannot be decoded, is too large to be trusted, or has other channels.
        """
        image = self._with_channels(_opened(record), record.where)
        if image.size != (self.size, self.size):
            filter = Image.Resampling[self.resample.upper()]
            image = image.resize((self.size, self.size), filter)
        return np.asarray(image).reshape(self.size, self.size, self.channels)

    def _with_channels(self, image: Image.Image, where: str) -> Image.Image:
        if image.mode == "P":
            # Colours by number.
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode == "PA" or (image.mode in ("L", "RGB") and "transparency" in image.info):
            # Which of its values are transparent is said beside.
            image = image.convert("LA" if image.mode == "L" else "RGBA")
        if image.mode not in (*_GREY, *_COLOUR):
            raise DataError(
                f"{where}: its pixels are {image.mode} (above 8 bits, or neither grey nor RGB); convert it "
                "to 8 bits first, since how to scale its values is not known"
            )
        if image.mode in _ALPHA and not self.convert and image.getchannel("A").getextrema() != (255, 255):
            raise DataError(
                f"{where}: parts of the image are transparent; take it out, or set data.convert_channels: "
                "true to drop transparency"
            )
        grey = image.mode in _GREY
        if grey != (self.channels == 1) and not self.convert:
            raise DataError(
                f"{where}: the image is {'grey' if grey else 'RGB'}, and model.num_channels is "
                f"{self.channels}; take it out, or set data.convert_channels: true to convert such images"
            )
        return image.convert("L" if self.channels == 1 else "RGB")


@contextmanager
def decoding() -> Iterator[None]:
    """Have Pillow know its formats, and raise where it warns of an image that would take gigabytes."""
    Image.init()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _opened(record: ImageRecord) -> Image.Image:
    if not isinstance(record.image, bytes):
        return Image.fromarray(record.image)
    try:
        with Image.open(io.BytesIO(record.image), formats=_FORMATS) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:
        # Every format's decoder fails in its own way.
        told = "it is no image that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{record.where}: cannot be decoded as an image: {told}") from None
