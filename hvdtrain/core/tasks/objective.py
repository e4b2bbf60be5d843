"""The loss and the metrics of a user's model, from what the model returns, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from hvdtrain.core.data.batches import Batch
from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.reference import describe
from hvdtrain.core.tasks.custom import TaskSpec, is_name
from hvdtrain.core.tasks.objective_checks import (
    LOSS_WEIGHTS,
    TARGETS,
    check_classes,
    check_result,
    check_shapes,
    logits_of,
    split_labels,
)
from hvdtrain.core.user_code import load_user, user_code

# Of the outputs and the labels (a named one), or of the outputs and the batch (the user's).
Function: TypeAlias = Callable[..., Any]
Tensors: TypeAlias = Mapping[str, Any]
# Sum and weight, scalars: a mean is one over the other, each summed over ranks. Last, whether the function
# gave the weight, so that it is known only now.
Sums: TypeAlias = tuple[Any, Any, bool]


class Kernels(Protocol):
    """What a framework computes for an `Objective`, in the dtype in which losses are summed.

    Attributes:
        losses: functions of the model's output and the labels, by name; one loss for each prediction.
        metrics: likewise.
    """

    losses: Mapping[str, Function]
    metrics: Mapping[str, Function]

    def read(self, tensor: Any) -> NDArray[Any]:
        """A tensor's values."""
        ...

    def unlike(self, targets: Any, value: int) -> Any:
        """1 where targets differ from a value, else 0."""
        ...

    def classes(self, targets: Any, weights: Any) -> Any:
        """Targets as the framework's cross-entropy takes them; those of weight 0 may be no class."""
        ...

    def sum_predictions(self, function: Function, logits: Any, targets: Any, weights: Any) -> tuple[Any, Any]:
        """The weighted sum of a named function, and the sum of weights."""
        ...

    def sum_examples(self, values: Any, rows: int) -> tuple[Any, Any]:
        """The sum of a value for each example, and how many there are."""
        ...

    def take_pair(self, total: Any, weight: Any) -> tuple[Any, Any]:
        """A sum and a weight of the user's, through which no gradient flows."""
        ...


class Objective:
    """What `task.loss` and `task.metrics` name, as sums over a batch."""

    def __init__(self, task: TaskSpec, kernels: Kernels) -> None:
        """Look up what the task names.

        Args:
            task: the section of the spec.
            kernels: of a framework.

        Raises:
            SpecError: a path cannot be imported.
        """
        self._task, self._kernels = task, kernels
        # Of `cross_entropy`, once it has been computed.
        self._classes: int | None = None
        self._loss = _find("task.loss", task.loss, kernels.losses)
        self._metrics = [_find("task.metrics", metric, kernels.metrics) for metric in task.metrics]

    @property
    def count(self) -> int:
        """How many means are computed: the loss and the metrics."""
        return 1 + len(self._metrics)

    def check(self, batch: Batch) -> None:
        """DataError where a label of a batch is no class."""
        if self._classes is not None:
            check_classes(batch.targets, self._classes, self._task.ignore_index)

    def inputs(self, batch: Tensors) -> dict[str, Any]:
        """What of a batch the model takes."""
        return split_labels(batch, self._task.label_names)[0]

    def loss(self, outputs: Any, batch: Tensors, training: bool = False) -> Sums:
        """The summed loss of a batch, and its weight where the function of the task says it.

        Args:
            outputs: the model's.
            batch: what `tensors` made of a micro-batch.
            training: whether labels are smoothed.

        Raises:
            SpecError: the shapes do not fit, or the function has failed.
        """
        function = self._loss
        if training and self._task.label_smoothing:
            function = partial(function, label_smoothing=self._task.label_smoothing)
        return self._sums("task.loss", self._task.loss, function, outputs, batch)

    def examples(self, outputs: Any, batch: Tensors) -> Any:
        """The loss of each example, (rows,), where a function of the user's returns that; else their sum."""
        if is_name(self._task.loss):
            return self.loss(outputs, batch)[0]
        found, pair = self._call("task.loss", self._task.loss, self._loss, outputs, batch)
        return found if pair is None else pair[0]

    def metrics(self, outputs: Any, batch: Tensors) -> list[Sums]:
        """The same of each metric, in the order of `task.metrics`."""
        return [
            self._sums("task.metrics", name, function, outputs, batch)
            for name, function in zip(self._task.metrics, self._metrics, strict=True)
        ]

    def _sums(self, field: str, name: Any, function: Function, outputs: Any, batch: Tensors) -> Sums:
        if is_name(name):
            return *self._named(field, name, function, logits_of(outputs), batch), False
        found, pair = self._call(field, name, function, outputs, batch)
        if pair is None:
            return *self._kernels.sum_examples(found, batch[LOSS_WEIGHTS].shape[0]), False
        return *self._kernels.take_pair(*pair), True

    def _call(
        self, field: str, name: Any, function: Function, outputs: Any, batch: Tensors
    ) -> tuple[Any, tuple[Any, Any] | None]:
        """What a function of the user's returns, and whether that is a pair."""
        shown = str(describe(name))
        with user_code(f"{field}: {shown}(outputs, batch)", function, SpecError):
            found = function(outputs, split_labels(batch, self._task.label_names)[1])
        return found, check_result(field, shown, found, batch[LOSS_WEIGHTS].shape[0])

    def _named(
        self, field: str, name: str, function: Function, logits: Any, batch: Tensors
    ) -> tuple[Any, Any]:
        targets, weights, ignored = batch[TARGETS], batch[LOSS_WEIGHTS], self._task.ignore_index
        check_shapes(field, name, tuple(logits.shape), tuple(targets.shape))
        if weights.shape != targets.shape:
            # Beside a loss of the user's, whose weights are those of rows.
            weights = self._kernels.unlike(targets, ignored)
        if name == "cross_entropy":
            if self._classes is None:
                # The first batch is neither compiled nor checked.
                self._classes = int(logits.shape[-1])
                check_classes(self._kernels.read(targets), self._classes, ignored)
            targets = self._kernels.classes(targets, weights)
        return self._kernels.sum_predictions(function, logits, targets, weights)


def _find(field: str, name: Any, named: Mapping[str, Function]) -> Function:
    found: Function = named[name] if is_name(name) and name in named else load_user(name, field, SpecError)
    return found
