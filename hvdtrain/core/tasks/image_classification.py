"""Telling classes of images apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.augmentation import Augmentation
from hvdtrain.core.data.batches import EVALUATION_EPOCH, Batch, Dataset
from hvdtrain.core.data.content import fingerprint
from hvdtrain.core.data.corpus import split_members
from hvdtrain.core.data.image_cache import prepare_images, where_is
from hvdtrain.core.data.image_sources import ImageSource, named_classes
from hvdtrain.core.data.image_store import ImageStore
from hvdtrain.core.data.images import ImageSpec, Normalisation
from hvdtrain.core.data.labels import Labels, check_order, find_labels
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
    """Of one image: the model's section has its size; with mixup it has two targets."""
    del task
    return Shapes(1, 2 if data.mixup_alpha else 1)


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
        DataError: see `hvdtrain.core.data.image_cache.prepare_images`; or there are other classes than the
            model tells apart.
    """
    del task
    images = prepare_images(data, model.image_size, model.num_channels, announce)
    source, store = images[0]
    labels = find_labels(store.names, named_classes(data, source), model.num_labels, source.told)
    check_order(labels, model.init_from, announce)
    normalisation, augmentation = Normalisation.of(data, model.num_channels), Augmentation.of(data, seed)
    splits = [
        ImageSplit(store.pixels, _numbers(data, source, store, labels), None, normalisation, augmentation)
        for source, store in images
    ]
    share = data.split_share if len(splits) == 1 else 0.0
    if len(splits) == 1:
        splits = [replace(splits[0], members=part) for part in split_members(len(splits[0]), share, seed)]
    train, validation = splits
    facts = {"images": [store.fingerprint for _, store in images], "classes": labels.names}
    return Dataset(
        train,
        validation,
        fingerprint(facts | {"split": [share, seed]}),
        files=normalisation.preprocessor(model.image_size, data),
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
        members: which of them are in the split, int64 (len(self),); None: all.
        normalisation: of the pixels.
        augmentation: of training images.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.integer]
    members: Indices | None
    normalisation: Normalisation
    augmentation: Augmentation

    def __len__(self) -> int:
        return len(self.labels if self.members is None else self.members)

    @property
    def costs(self) -> NDArray[np.int64]:
        """1 for each image."""
        return np.ones(len(self), np.int64)

    def collate(self, indices: Indices, epoch: int, rows: int) -> Batch:
        """As `Split.collate`.

        Returns:
            Inputs: `pixel_values`, uint8 (rows, height, width, channels), whose rows beyond the data are
            zeros; `pixel_scale` and `pixel_offset`, float64 (channels,), by which a network normalises them.
            Targets and loss weights are those of `targets_of`. With mixup, training has a second column of
            both: the class of the other image, and the shares of the two.
        """
        augmentation = self.augmentation if epoch != EVALUATION_EPOCH else Augmentation()
        found = targets_of(self.labels[self._members(indices)], rows)
        targets, weights = found.targets, found.loss_weights
        pixels = np.zeros((rows, *self.pixels.shape[1:]), np.uint8)

        def changed(sample: int) -> NDArray[np.uint8]:
            return augmentation.changed(self.pixels[self._members(sample)], epoch, sample)

        if augmentation.alpha:
            targets, weights = targets.repeat(2, axis=1), weights.repeat(2, axis=1)
            for row, sample in enumerate(indices.tolist()):
                pixels[row], other, share = augmentation.mixed(changed, len(self), epoch, sample)
                targets[row, 1] = self.labels[self._members(other)]
                weights[row] = share, 1.0 - share
        else:
            for row, sample in enumerate(indices.tolist()):
                pixels[row] = changed(sample)
        return Batch(
            inputs={"pixel_values": pixels, **self.normalisation.inputs},
            targets=targets,
            loss_weights=weights,
            weight=found.weight,
            counts={"tokens": len(indices), "samples": len(indices)},
        )

    def _members(self, samples: Any) -> Any:
        return samples if self.members is None else self.members[samples]


def _numbers(data: ImageSpec, source: ImageSource, store: ImageStore, labels: Labels) -> NDArray[np.int32]:
    """The class of each image; DataError, with the place of an image, where it is none of the labels."""
    known = {*labels.names}
    numbers = [
        labels.number(name, "" if name in known else where_is(data, source, name)) for name in store.names
    ]
    return np.array(numbers, np.int32)[store.labels]
