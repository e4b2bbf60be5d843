"""How much of a loss is computed at once."""

from __future__ import annotations

# 64 MiB of float32. A batch's logits may be larger than everything else that a small model keeps.
MOST_LOGITS = 2**24


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
