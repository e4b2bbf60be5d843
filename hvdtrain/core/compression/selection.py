"""The largest elements of a vector, on the host: a sample first tells which need not be looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_STRIDE = 64
# Candidates beyond k, as a share of k and as elements of the sample: enough that a second look is rare.
_SPARE_SHARE, _SPARE = 0.3, 20


def largest(values: np.ndarray, k: int) -> NDArray[np.int32]:
    """Where the k largest elements are.

    Args:
        values: a vector of more than no elements; NaN is never among the largest if enough others are there.
        k: how many, at most all.

    Returns:
        int32 (k,), ascending; which of equal elements are taken is left open.
    """
    sample = values[::_STRIDE]
    reach = int(len(sample) * k / len(values) * (1.0 + _SPARE_SHARE)) + _SPARE
    if reach < len(sample):
        candidates = np.flatnonzero(values >= np.partition(sample, -reach)[-reach])
        # Values that the sample misjudges: repeated in step with the stride, or sorted into one place.
        if k <= len(candidates) < len(values):
            return candidates[_largest(values[candidates], k)].astype(np.int32)
    return _largest(values, k).astype(np.int32)


def _largest(values: np.ndarray, k: int) -> NDArray[np.intp]:
    first = len(values) - k
    found = np.flatnonzero(values >= np.partition(values, first)[first])
    # Of equal elements, or with NaN among them, there would be another number.
    return found if len(found) == k else np.sort(np.argpartition(values, first)[first:])
