"""Telling classes of images apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.batches import Batch, Dataset
from hvdtrain.core.data.content import fingerprint
from hvdtrain.core.data.corpus import split_members
from hvdtrain.core.data.images import ImageSpec, Normalisation
from hvdtrain.core.data.labels import find_labels
from hvdtrain.core.data.order import Indices
from hvdtrain.core.spec.sections import TaskSection
from hvdtrain.core.tasks.classification import ClassMeasures, targets_of
from hvdtrain.core.tasks.task import Shapes

DataSpec = ImageSpec
_SIZES = ("image_size", "num_channels", "num_labels")


class TaskSpec(TaskSection):
    """Image classification: cross-entropy over the classes, one prediction an image."""

    type: Literal["image_classification"] = "image_classification"


def check(model: Any, data: ImageSpec) -> None:
    """Whether the model takes images, and the data fits its channels and classes; ValueError where not."""
    missing = [name for name in _SIZES if not hasattr(model, name)]
    if missing:
        raise ValueError(f"model: a model for images has {', '.join(missing)}")
    Normalisation.of(data, model.num_channels)
    if data.class_names and len(data.class_names) != model.num_labels:
        raise ValueError(
            f"data.class_names has {len(data.class_names)} names, and model.num_labels is {model.num_labels}"
        )


def shapes(data: ImageSpec, task: TaskSpec) -> Shapes:
    """Of one image: the model's section has its size."""
    del data, task
    return Shapes(1, 1)


def prepare(
    model: Any, data: ImageSpec, task: TaskSpec, seed: int, announce: Callable[[str], None]
) -> Dataset:
    """Decode and resize the images on this node, or open what was made before.

    Args:
        model: the spec's model section, whose `image_size`, `num_channels` and `num_labels` the images get.
        data: the data section.
        task: the task section.
        seed: the job's seed.
        announce: called with a line for the user when the call will take a while.

    Raises:
        DataError: the data cannot be used.
    """
    del task, announce
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = find_labels(
        {*map(str, digits.target)}, data.class_names, model.num_labels, "data.dataset digits"
    )
    numbers = np.array([labels.number(str(label), "digits") for label in digits.target])
    normalisation = Normalisation.of(data, model.num_channels)
    train, validation = (
        ImageSplit(pixels, numbers, members, normalisation)
        for members in split_members(len(pixels), data.validation_split, seed)
    )
    return Dataset(
        train,
        validation,
        fingerprint({"seed": seed, "split": data.validation_split}),
        files=normalisation.preprocessor(model.image_size, 2),
        config=labels.config,
    )


def summarise(mean_loss: float | None) -> dict[str, float | None]:
    """As `Task.summarise`: nothing beside what `measures` reports."""
    del mean_loss
    return {}


def measures(model: Any) -> ClassMeasures:
    """What an evaluation counts and reports."""
    return ClassMeasures(model.num_labels)


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images and their classes.

    Attributes:
        pixels: uint8 (images, height, width, channels).
        labels: the class of each, integers (images,).
        members: which of them are in the split, int64 (len(self),).
        normalisation: of the pixels.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.integer]
    members: Indices
    normalisation: Normalisation

    def __len__(self) -> int:
        return len(self.members)

    @property
    def costs(self) -> NDArray[np.int64]:
        """1 for each image."""
        return np.ones(len(self), np.int64)

    def collate(self, indices: Indices, epoch: int, rows: int) -> Batch:
        """As `Split.collate`.

        Returns:
            Inputs: `pixel_values`, uint8 (rows, height, width, channels), whose rows beyond the data are
            zeros; `pixel_scale` and `pixel_offset`, float64 (channels,), by which a network normalises them.
            Targets and loss weights are those of `targets_of`.
        """
        members = self.members[indices]
        pixels = np.zeros((rows, *self.pixels.shape[1:]), np.uint8)
        pixels[: len(members)] = self.pixels[members]
        found = targets_of(self.labels[members], rows)
        return Batch(
            inputs={"pixel_values": pixels, **self.normalisation.inputs},
            targets=found.targets,
            loss_weights=found.loss_weights,
            weight=found.weight,
            counts={"tokens": len(members), "samples": len(members)},
        )
