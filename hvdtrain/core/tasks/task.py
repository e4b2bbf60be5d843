"""What a task supplies: its sections of the spec, its data, and the shapes of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.batches import Batch, Dataset
from hvdtrain.core.spec.sections import DataSection, TaskSection


@dataclass(frozen=True)
class Shapes:
    """Sizes of one sample, by which memory and operations are predicted.

    Attributes:
        length: tokens, or whatever the network's features are numbered by.
        predictions: at most.
    """

    length: int
    predictions: int


class Evaluator(Protocol):
    """What computes an evaluation: an `Adapter` is one."""

    def evaluate(self, batch: Batch) -> NDArray[np.float64]:
        """As `Adapter.evaluate`."""
        ...

    def predict(self, batch: Batch) -> NDArray[Any]:
        """As `Adapter.predict`."""
        ...


class Measures(Protocol):
    """What an evaluation adds up over batches and ranks, and what it makes of the sums.

    Attributes:
        names: of what `means` reports.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def count(self, evaluator: Evaluator, batch: Batch) -> NDArray[np.float64]:
        """What is added up, of one batch; always as many numbers."""
        ...

    def means(self, sums: NDArray[np.float64]) -> dict[str, float | None]:
        """What is reported, by name; None for what would be divided by 0.

        Args:
            sums: of `count` over all batches of all ranks.
        """
        ...


class Task(Protocol):
    """How samples become batches; the other modules of this package are some.

    Attributes:
        TaskSpec: its section of the spec.
        DataSpec: the data section of a spec with this task.

    A task whose evaluation needs the logits has `measures`, which takes the spec's model section and returns
    `Measures`. The others' evaluation adds up what `Adapter.evaluate` returns.
    """

    TaskSpec: type[TaskSection]
    DataSpec: type[DataSection]

    def check(self, model: Any, data: Any) -> None:
        """Compare the sections of a spec; ValueError where they contradict each other."""
        ...

    def shapes(self, data: Any, task: Any) -> Shapes:
        """Of one sample, known before there is any data."""
        ...

    def prepare(
        self, model: Any, data: Any, task: Any, seed: int, announce: Callable[[str], None]
    ) -> Dataset:
        """Make the samples on this node, once, or open what was made before.

        Args:
            model: the spec's model section.
            data: the data section.
            task: the task section.
            seed: the job's seed.
            announce: called with a line for the user when the call will take a while.

        Raises:
            DataError: the data cannot be used.
        """
        ...

    def summarise(self, mean_loss: float | None) -> dict[str, float | None]:
        """What an evaluation reports beside its loss and the metrics.

        Args:
            mean_loss: the sum of losses over all ranks divided by the sum of weights; None where that is 0.

        Returns:
            Numbers by name; None for one that there is not. A line of metrics.jsonl has them with `eval_`
            before their names.
        """
        ...


def perplexity(mean_loss: float | None) -> dict[str, float | None]:
    """`perplexity`, the exponential of a mean loss in nats; infinite beyond float64."""
    try:
        return {"perplexity": None if mean_loss is None else math.exp(mean_loss)}
    except OverflowError:
        return {"perplexity": math.inf}


def check_length(length: int, model: Any) -> None:
    """ValueError where sequences are longer than a model has positions."""
    most = most_positions(model)
    if most is not None and length > most:
        raise ValueError(f"data.max_seq_length {length} exceeds model.{_positions_field(model)} {most}")


def most_positions(model: Any) -> int | None:
    """Tokens of the longest sequence that a model can take; None where its section sets no bound."""
    field = _positions_field(model)
    return getattr(model, field) if field else None


def _positions_field(model: Any) -> str | None:
    return next((n for n in ("max_position_embeddings", "n_positions") if hasattr(model, n)), None)
