"""What an evaluation measures, by its task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.batches import Batch
from hvdtrain.core.spec.sections import ModelSection, TaskSection
from hvdtrain.core.tasks import task_of
from hvdtrain.core.tasks.task import Evaluator, Measures


def measures_of(task: TaskSection, model: ModelSection) -> Measures:
    """What an evaluation of a spec with these sections measures."""
    make: Callable[[ModelSection], Measures] | None = getattr(task_of(task), "measures", None)
    return LossMeasures(task) if make is None else make(model)


@dataclass(frozen=True)
class LossMeasures:
    """The loss, and the metrics that the adapter computes beside it.

    Attributes:
        task: the task section.
    """

    task: TaskSection

    @property
    def names(self) -> tuple[str, ...]:
        """As `Measures.names`."""
        return ("loss", *self.task.metric_names, *task_of(self.task).summarise(None))

    def count(self, evaluator: Evaluator, batch: Batch) -> NDArray[np.float64]:
        """As `Measures.count`: what `Adapter.evaluate` returns."""
        return evaluator.evaluate(batch)

    def means(self, sums: NDArray[np.float64]) -> dict[str, float | None]:
        """As `Measures.means`: sums divided by their sums of weights, and what the task makes of the loss."""
        totals = zip(sums[::2].tolist(), sums[1::2].tolist(), strict=True)
        means = [total / weight if weight else None for total, weight in totals]
        found = [*means, *task_of(self.task).summarise(means[0]).values()]
        return dict(zip(self.names, found, strict=True))
