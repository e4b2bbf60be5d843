"""The loss and the metrics of a user's model, from what the model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch
from torch.nn import functional

from hvdtrain.core.data import Batch
from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.reference import describe
from hvdtrain.core.tasks.custom import TaskSpec
from hvdtrain.core.tasks.objective import (
    check_classes,
    check_result,
    check_shapes,
    logits_of,
    split_labels,
)
from hvdtrain.core.user_code import load_user, user_code
from hvdtrain.torch.losses import each_cross_entropy
from hvdtrain.torch.world import device

# Of the outputs and the labels (a named one), or of the outputs and the batch (the user's).
Function: TypeAlias = Callable[..., Any]
# Sum and weight, scalars: a mean is one over the other, each summed over ranks. Last, whether the function
# gave the weight, so that it is known only now.
Sums: TypeAlias = tuple[torch.Tensor, torch.Tensor, bool]


class Objective:
    """What `task.loss` and `task.metrics` name, as sums over a batch."""

    def __init__(self, task: TaskSpec, dtype: torch.dtype) -> None:
        """Look up what the task names.

        Args:
            task: the section of the spec.
            dtype: in which losses are computed and summed.

        Raises:
            SpecError: a path cannot be imported.
        """
        self._task, self._dtype = task, dtype
        # Of `cross_entropy`, once it has been computed.
        self._classes: int | None = None
        self._loss = _find("task.loss", task.loss, _LOSSES)
        self._metrics = [_find("task.metrics", metric, _METRICS) for metric in task.metrics]

    @property
    def count(self) -> int:
        """How many means are computed: the loss and the metrics."""
        return 1 + len(self._metrics)

    def check(self, batch: Batch) -> None:
        """DataError where a label of a batch is no class."""
        if self._classes is not None:
            check_classes(batch.targets, self._classes, self._task.ignore_index)

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What of a batch the model takes."""
        return split_labels(batch, self._task.label_names)[0]

    def loss(self, outputs: Any, batch: Mapping[str, torch.Tensor], training: bool = False) -> Sums:
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

    def examples(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each example, (rows,), where a function of the user's returns that; else their sum."""
        if _is_name(self._task.loss):
            return self.loss(outputs, batch)[0]
        found, pair = self._call("task.loss", self._task.loss, self._loss, outputs, batch)
        return found if pair is None else pair[0]

    def metrics(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> list[Sums]:
        """The same of each metric, in the order of `task.metrics`."""
        return [
            self._sums("task.metrics", name, function, outputs, batch)
            for name, function in zip(self._task.metrics, self._metrics, strict=True)
        ]

    def _sums(
        self, field: str, name: Any, function: Function, outputs: Any, batch: Mapping[str, torch.Tensor]
    ) -> Sums:
        if _is_name(name):
            return self._named(field, name, function, logits_of(outputs), batch)
        found, pair = self._call(field, name, function, outputs, batch)
        if pair is None:
            rows = batch["loss_weights"].shape[0]
            return found.to(self._dtype).sum(), torch.tensor(rows, dtype=self._dtype), False
        total, weight = (torch.as_tensor(x, dtype=self._dtype, device=device()) for x in pair)
        return total, weight.detach(), True

    def _call(
        self, field: str, name: Any, function: Function, outputs: Any, batch: Mapping[str, torch.Tensor]
    ) -> tuple[Any, tuple[Any, Any] | None]:
        """What a function of the user's returns, and whether that is a pair."""
        shown = str(describe(name))
        with user_code(f"{field}: {shown}(outputs, batch)", function, SpecError):
            found = function(outputs, split_labels(batch, self._task.label_names)[1])
        return found, check_result(field, shown, found, batch["loss_weights"].shape[0])

    def _named(
        self,
        field: str,
        name: str,
        function: Function,
        logits: torch.Tensor,
        batch: Mapping[str, torch.Tensor],
    ) -> Sums:
        targets, weights = batch["targets"], batch["loss_weights"].to(self._dtype)
        check_shapes(field, name, tuple(logits.shape), tuple(targets.shape))
        if weights.shape != targets.shape:
            # Beside a loss of the user's, whose weights are those of rows.
            weights = (targets != self._task.ignore_index).to(self._dtype)
        if name == "cross_entropy":
            # PyTorch's takes one type of integers alone; a label that is left out may be no class.
            targets = targets.long()
            if self._classes is None:
                # The first batch is neither compiled nor checked.
                self._classes = int(logits.shape[-1])
                check_classes(targets.cpu().numpy(), self._classes, self._task.ignore_index)
            targets = torch.where(weights > 0, targets, 0)
        found = function(logits.to(self._dtype), targets).flatten()
        return found @ weights.flatten(), weights.sum(), False


def _is_name(reference: Any) -> bool:
    return isinstance(reference, str) and ":" not in reference


def _find(field: str, name: Any, named: Mapping[str, Function]) -> Function:
    return named[name] if isinstance(name, str) and name in named else load_user(name, field, SpecError)


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    return each_cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing)


def _mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets.to(outputs.dtype)).square()


def _bce_with_logits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")


def _accuracy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Of the classes, the likeliest; of a single logit, whether it is above 0.
    one = logits.shape == targets.shape
    found = logits > 0 if one else logits.argmax(-1)
    return (found == targets.to(found.dtype)).to(logits.dtype)


_LOSSES: dict[str, Function] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "bce_with_logits": _bce_with_logits,
}
_METRICS = {"accuracy": _accuracy}
