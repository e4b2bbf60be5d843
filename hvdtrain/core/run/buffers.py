"""Buffers, such as the statistics of a batch norm: each rank has its own until they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from hvdtrain.core.families.weights import statistics
from hvdtrain.core.run.run import Run


def average_buffers(run: Run, samples: int) -> None:
    """Replace each floating-point buffer by its mean over ranks; every rank calls it.

    Frozen weights are left alone: they are equal on all ranks, and stay as they are to the bit. The mean is
    weighted by samples, and divided by their sum over ranks. Where that is 0, buffers are equal already.

    Args:
        run: on this rank.
        samples: that this rank has trained on since the last call.
    """
    model = run.adapter.model
    found = dict(model.read(buffers)) if (buffers := statistics(run.weights)) else {}
    arrays = {name: array for name, array in found.items() if np.issubdtype(array.dtype, np.floating)}
    if not arrays:
        return
    own = [array.ravel().astype(np.float64) * samples for array in arrays.values()]
    shared = run.ranks.sum(np.concatenate([*own, [float(samples)]]))
    *totals, count = np.split(shared, np.cumsum([array.size for array in own]))
    if count[0]:
        means = (total / count[0] for total in totals)
        model.write(
            {
                name: mean.reshape(array.shape).astype(array.dtype)
                for (name, array), mean in zip(arrays.items(), means, strict=True)
            }
        )


@contextmanager
def passes_undone(run: Run) -> Iterator[None]:
    """Undo what forward passes in training mode do to buffers and random generators of this rank."""
    generators = run.adapter.generators.read()
    buffers = statistics(run.weights)
    before = dict(run.adapter.model.read(buffers)) if buffers else {}
    try:
        yield
    finally:
        run.adapter.model.write(before)
        run.adapter.generators.write(generators)
