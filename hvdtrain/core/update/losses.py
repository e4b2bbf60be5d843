"""What cross-entropy means, and how much of it is computed at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# 64 MiB of float32. A batch's logits may be larger than everything else that a small model keeps.
MOST_LOGITS = 2**24


def cross_entropy(
    logits: NDArray[np.float64], targets: NDArray[np.int64], label_smoothing: float = 0.0
) -> NDArray[np.float64]:
    """PyTorch's cross-entropy of each prediction, in nats: what both adapters compute.

    With `label_smoothing` e (Szegedy et al. 2016, arXiv:1512.00567) the right one of K classes is expected
    with 1 - e + e / K, and each other one with e / K.

    Args:
        logits: (predictions, classes).
        targets: the right classes, (predictions,).
        label_smoothing: e, at least 0 and below 1.

    Returns:
        (predictions,).
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    right = log_p[np.arange(len(targets)), targets]
    return -(1.0 - label_smoothing) * right - label_smoothing * log_p.mean(axis=-1)


def chunks(predictions: int, classes: int, most: int = MOST_LOGITS) -> list[int]:
    """How many predictions to take at a time, so that no more logits than this exist at once.

    Args:
        predictions: of a batch, those of weight 0 included.
        classes: logits of each.
        most: logits at once; a single prediction may have more.

    Returns:
        The size of each chunk, as equal as can be; their sum is `predictions`.
    """
    at_once = max(1, most // classes)
    count = max(1, -(-predictions // at_once))
    return [predictions // count + (i < predictions % count) for i in range(count)]
