"""The data section of tasks on images: where they come from, and what is made of their pixels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hvdtrain.core.data.dataset_folders import is_dataset_folder
from hvdtrain.core.data.labels import check_names
from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.sections import DataSection

# A channel's mean or standard deviation, with pixels between 0 and 1; one for all channels, or one each.
PerChannel = float | Annotated[tuple[float, ...], Field(min_length=1)]
# Pillow's filters by its names, with the numbers that Hugging Face's preprocessors write.
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
_SUFFIXES = (".parquet", ".arrow", ".npz")
PREPROCESSOR_FILE = "preprocessor_config.json"
_RESCALE = 1.0 / 255.0
# What an evaluation on other images needs of a section: how they are read, and no augmentation.
_OF_IMAGES = ("image_field", "label_field", "resample", "convert_channels", "cache_dir", "prefetch")


class ImageSpec(DataSection):
    """Where images come from, what they are made into once, and how each epoch changes them.

    Attributes:
        folder: has a folder of images for each class, or `train` and `validation` with these.
        files: paths, globs, and folders written by Hugging Face's `save_to_disk`.
        convert_channels: whether grey images may become RGB, RGB ones grey, and transparency be dropped.
        mixup_alpha: both parameters of the beta distribution of mixup; 0: none.
    """

    dataset: Literal["digits"] | None = None
    folder: str | None = None
    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    validation_split: Annotated[float, Field(ge=0.0, le=0.5)] | None = None
    image_field: str = "image"
    label_field: str = "label"
    class_names: tuple[str, ...] = ()
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear"
    convert_channels: bool = False
    image_mean: PerChannel = 0.5
    image_std: PerChannel = 0.5
    random_crop_padding: Annotated[int, Field(ge=0)] = 0
    horizontal_flip: bool = False
    mixup_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    cache_dir: str | None = None

    @property
    def why_empty(self) -> str:
        """As `DataSection.why_empty`."""
        return "there are no images; look at the data section"

    @classmethod
    def of_pretrained(cls, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
        """As `DataSection.of_pretrained`: the normalisation and the filter of its image processor, if any."""
        del given
        path = folder / PREPROCESSOR_FILE
        if not path.exists():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SpecError(f"model.init_from: {path} cannot be read: {error}") from None
        factor = found.get("rescale_factor", _RESCALE)
        if not found.get("do_rescale", True) or not math.isclose(factor, _RESCALE, rel_tol=1e-3):
            raise SpecError(
                f"model.init_from: {path} has do_rescale {found.get('do_rescale', True)} and rescale_factor "
                f"{factor}; expected pixels that are divided by 255"
            )
        names = {number: name for name, number in RESAMPLE.items()}
        fields: dict[str, Any] = {"resample": names.get(found.get("resample"))}
        if found.get("do_normalize", True):
            fields |= {name: found.get(name) for name in ("image_mean", "image_std")}
        else:
            fields |= {"image_mean": 0.0, "image_std": 1.0}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of its files end with."""
        return _SUFFIXES

    @property
    def split_share(self) -> float:
        """Share of the training images to evaluate on where there are no others to."""
        return 0.1 if self.validation_split is None else self.validation_split

    def evaluated_on(self, files: Sequence[str], folder: Path, class_names: Sequence[str]) -> ImageSpec:
        """As `DataSection.evaluated_on`: files, or one folder with a folder of images for each class."""
        del folder
        if not files:
            return self.model_copy(update={"class_names": tuple(class_names)})
        given = [Path(file) for file in files]
        classes = len(given) == 1 and given[0].is_dir() and not is_dataset_folder(given[0])
        section = {
            "files": () if classes else tuple(files),
            "folder": files[0] if classes else None,
            "class_names": tuple(class_names),
            "image_mean": self.image_mean,
            "image_std": self.image_std,
            **{name: getattr(self, name) for name in _OF_IMAGES},
        }
        return type(self)(validation_split=0.0, **section)

    @model_validator(mode="after")
    def _one_source(self) -> ImageSpec:
        given = [name for name in ("dataset", "folder", "files") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                "give one of dataset: digits, folder: DIR with a folder of images for each class, and files: "
                f"[paths and globs of {', '.join(_SUFFIXES)}] (found {' and '.join(given) or 'none'})"
            )
        if self.validation_files and not self.files:
            raise ValueError(f"validation_files go with files, and {given[0]} is given")
        if self.validation_files and self.validation_split:
            raise ValueError(
                "validation_files are what is evaluated on, and validation_split would take images out of "
                "training as well: give one of them"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> ImageSpec:
        check_names(self.class_names)
        if np.min(self.image_std) <= 0.0:
            raise ValueError(f"image_std {self.image_std}: pixels are divided by it; expected numbers > 0")
        return self


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Pixels as networks take them: (x / 255 - mean) / std, as one product and one sum.

    Attributes:
        mean: float64 (channels,).
        std: float64 (channels,).
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @classmethod
    def of(cls, data: ImageSpec, channels: int) -> Normalisation:
        """That of a data section.

        Args:
            data: the section.
            channels: `model.num_channels`.

        Raises:
            ValueError: it has another number of channels.
        """
        found = [np.array(value, np.float64).reshape(-1) for value in (data.image_mean, data.image_std)]
        for name, value in zip(("image_mean", "image_std"), found, strict=True):
            if value.size not in (1, channels):
                raise ValueError(
                    f"data.{name} has {value.size} numbers, and model.num_channels is {channels}: give one "
                    "number, or one for each channel"
                )
        return cls(*(np.broadcast_to(value, channels).copy() for value in found))

    @property
    def inputs(self) -> dict[str, NDArray[np.float64]]:
        """What a batch tells a network: `pixel_scale` and `pixel_offset`, float64 (channels,)."""
        return {"pixel_scale": 1.0 / (255.0 * self.std), "pixel_offset": -self.mean / self.std}

    def preprocessor(self, size: int, data: ImageSpec) -> dict[str, str]:
        """The file by which `transformers.AutoImageProcessor` makes the same pixels.

        Args:
            size: height and width, `model.image_size`.
            data: the data section.
        """
        found: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",
            "do_convert_rgb": data.convert_channels and len(self.mean) == 3,
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": RESAMPLE[data.resample],
            "do_rescale": True,
            "rescale_factor": _RESCALE,
            "do_normalize": True,
            "image_mean": self.mean.tolist(),
            "image_std": self.std.tolist(),
        }
        return {PREPROCESSOR_FILE: json.dumps(found, indent=2) + "\n"}
