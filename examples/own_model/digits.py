"""scikit-learn's 1,797 pictures of handwritten digits, as arrays by name."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

Arrays = dict[str, np.ndarray]


def make(held_out: int = 297) -> tuple[Arrays, Arrays]:
    """The training set and the evaluation set.

    Args:
        held_out: pictures of the evaluation set.
    """
    found = load_digits()
    arrays = {"image": (found.images / 16.0).astype(np.float32)[..., None], "labels": found.target}
    train = {name: array[:-held_out] for name, array in arrays.items()}
    return train, {name: array[-held_out:] for name, array in arrays.items()}
