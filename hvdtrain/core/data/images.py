"""The data section of tasks on images, and what their pixels are made of before a network sees them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hvdtrain.core.spec.sections import DataSection

# A channel's mean or standard deviation, with pixels between 0 and 1; one for all channels, or one each.
PerChannel = float | Annotated[tuple[float, ...], Field(min_length=1)]


class ImageSpec(DataSection):
    """Where the images come from, and how their pixels are normalised."""

    dataset: Literal["digits"] | None = None
    validation_split: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    class_names: tuple[str, ...] = ()
    image_mean: PerChannel = 0.5
    image_std: PerChannel = 0.5

    @model_validator(mode="after")
    def _one_source(self) -> ImageSpec:
        if self.dataset is None:
            raise ValueError("give dataset: digits")
        return self

    @model_validator(mode="after")
    def _divides(self) -> ImageSpec:
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

    def preprocessor(self, size: int, resample: int) -> dict[str, str]:
        """The files by which `transformers.AutoImageProcessor` makes the same pixels.

        Args:
            size: height and width, `model.image_size`.
            resample: Pillow's number of the filter.
        """
        found: dict[str, Any] = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": resample,
            "do_rescale": True,
            "rescale_factor": 1.0 / 255.0,
            "do_normalize": True,
            "image_mean": self.mean.tolist(),
            "image_std": self.std.tolist(),
        }
        return {"preprocessor_config.json": json.dumps(found, indent=2) + "\n"}
