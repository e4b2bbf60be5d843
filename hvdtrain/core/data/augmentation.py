"""Random changes of training images that depend only on seed, epoch and sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.images import ImageSpec
from hvdtrain.core.random import random_words, unit_floats

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Augmentation:
    """What each epoch makes of an image, in NumPy: both frameworks see the same bytes.

    Attributes:
        padding: pixels of zeros around an image, of which a part of the image's size is cut.
        flip: whether half of the images are mirrored.
        alpha: both parameters of the beta distribution of mixup's shares; 0: no mixup.
        seed: the job's.
    """

    padding: int = 0
    flip: bool = False
    alpha: float = 0.0
    seed: int = 0

    @classmethod
    def of(cls, data: ImageSpec, seed: int) -> Augmentation:
        """That of a data section."""
        return cls(data.random_crop_padding, data.horizontal_flip, data.mixup_alpha, seed)

    def changed(self, image: Pixels, epoch: int, sample: int) -> Pixels:
        """An image cropped and flipped.

        Each of the (2 · padding + 1)² places of the crop is as likely as any other.

        Args:
            image: uint8 (height, width, channels).
            epoch: from 0.
            sample: its number in the training split.
        """
        if not self.padding and not self.flip:
            return image
        words = random_words(3, self.seed, "augment", epoch, sample)
        top, left = (int(word % np.uint64(2 * self.padding + 1)) for word in words[:2])
        if self.padding:
            height, width = image.shape[:2]
            around = (self.padding, self.padding)
            image = np.pad(image, (around, around, (0, 0)))[top : top + height, left : left + width]
        return image[:, ::-1] if self.flip and words[2] >> np.uint64(63) else image

    def mixed(
        self, image_of: Callable[[int], Pixels], count: int, epoch: int, sample: int
    ) -> tuple[Pixels, int, float]:
        """An image mixed with another of the training split (Zhang et al. 2018, arXiv:1710.09412).

        Args:
            image_of: the image of a sample, as it is changed in this epoch, uint8 (height, width, channels).
            count: samples of the split.
            epoch: from 0.
            sample: its number.

        Returns:
            lambda · image + (1 - lambda) · other, rounded half to even; the number of the other, which each
            sample is as likely as any other; and lambda, from Beta(alpha, alpha).
        """
        from scipy.special import betaincinv

        words = random_words(2, self.seed, "mixup", epoch, sample)
        other = int(words[0] % np.uint64(count))
        share = float(betaincinv(self.alpha, self.alpha, unit_floats(words[1:])[0]))
        both = share * image_of(sample).astype(np.float64) + (1.0 - share) * image_of(other)
        return np.rint(both).astype(np.uint8), other, share
