"""The loss and the metrics of a user's model, from what the model returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import tensorflow as tf

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
from hvdtrain.tensorflow.losses import each_cross_entropy

# Of the outputs and the labels (a named one), or of the outputs and the batch (the user's).
Function: TypeAlias = Callable[..., Any]
# Sum and weight, scalars: a mean is one over the other, each summed over ranks. Last, whether the function
# gave the weight, so that it is known only now.
Sums: TypeAlias = tuple[tf.Tensor, tf.Tensor, bool]


class Objective:
    """What `task.loss` and `task.metrics` name, as sums over a batch."""

    def __init__(self, task: TaskSpec, dtype: tf.DType) -> None:
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

    def inputs(self, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What of a batch the model takes."""
        return split_labels(batch, self._task.label_names)[0]

    def loss(self, outputs: Any, batch: Mapping[str, tf.Tensor], training: bool = False) -> Sums:
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

    def examples(self, outputs: Any, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The loss of each example, (rows,), where a function of the user's returns that; else their sum."""
        if _is_name(self._task.loss):
            return self.loss(outputs, batch)[0]
        found, pair = self._call("task.loss", self._task.loss, self._loss, outputs, batch)
        return found if pair is None else pair[0]

    def metrics(self, outputs: Any, batch: Mapping[str, tf.Tensor]) -> list[Sums]:
        """The same of each metric, in the order of `task.metrics`."""
        return [
            self._sums("task.metrics", name, function, outputs, batch)
            for name, function in zip(self._task.metrics, self._metrics, strict=True)
        ]

    def _sums(
        self, field: str, name: Any, function: Function, outputs: Any, batch: Mapping[str, tf.Tensor]
    ) -> Sums:
        if _is_name(name):
            return self._named(field, name, function, logits_of(outputs), batch)
        found, pair = self._call(field, name, function, outputs, batch)
        if pair is None:
            rows = batch["loss_weights"].shape[0]
            return tf.reduce_sum(tf.cast(found, self._dtype)), tf.constant(rows, self._dtype), False
        total, weight = (tf.cast(x, self._dtype) for x in pair)
        return total, tf.stop_gradient(weight), True

    def _call(
        self, field: str, name: Any, function: Function, outputs: Any, batch: Mapping[str, tf.Tensor]
    ) -> tuple[Any, tuple[Any, Any] | None]:
        """What a function of the user's returns, and whether that is a pair."""
        shown = str(describe(name))
        with user_code(f"{field}: {shown}(outputs, batch)", function, SpecError):
            found = function(outputs, split_labels(batch, self._task.label_names)[1])
        return found, check_result(field, shown, found, batch["loss_weights"].shape[0])

    def _named(
        self, field: str, name: str, function: Function, logits: tf.Tensor, batch: Mapping[str, tf.Tensor]
    ) -> Sums:
        targets, weights = batch["targets"], tf.cast(batch["loss_weights"], self._dtype)
        check_shapes(field, name, tuple(logits.shape), tuple(targets.shape))
        if weights.shape != targets.shape:
            # Beside a loss of the user's, whose weights are those of rows.
            weights = tf.cast(tf.cast(targets, tf.float64) != self._task.ignore_index, self._dtype)
        if name == "cross_entropy":
            # TensorFlow's takes two types of integers alone; a label that is left out may be no class.
            targets = tf.cast(targets, tf.int64)
            if self._classes is None:
                # The first batch is neither compiled nor checked.
                self._classes = int(logits.shape[-1])
                check_classes(targets.numpy(), self._classes, self._task.ignore_index)
            targets = tf.where(weights > 0, targets, tf.zeros_like(targets))
        found = tf.reshape(function(tf.cast(logits, self._dtype), targets), [-1])
        return tf.reduce_sum(found * tf.reshape(weights, [-1])), tf.reduce_sum(weights), False


def _is_name(reference: Any) -> bool:
    return isinstance(reference, str) and ":" not in reference


def _find(field: str, name: Any, named: Mapping[str, Function]) -> Function:
    return named[name] if isinstance(name, str) and name in named else load_user(name, field, SpecError)


def _cross_entropy(logits: tf.Tensor, targets: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    rows = tf.reshape(logits, [-1, logits.shape[-1]])
    return each_cross_entropy(rows, tf.reshape(targets, [-1]), label_smoothing)


def _mse(outputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    return tf.square(outputs - tf.cast(targets, outputs.dtype))


def _bce_with_logits(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    return tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(targets, logits.dtype), logits)


def _accuracy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    # Of the classes, the likeliest; of a single logit, whether it is above 0.
    one = logits.shape == targets.shape
    found = logits > 0 if one else tf.argmax(logits, -1)
    return tf.cast(found == tf.cast(targets, found.dtype), logits.dtype)


_LOSSES: dict[str, Function] = {
    "cross_entropy": _cross_entropy,
    "mse": _mse,
    "bce_with_logits": _bce_with_logits,
}
_METRICS = {"accuracy": _accuracy}
