"""What a loss or a metric of a user's model may take and return, whatever the framework."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from hvdtrain.core.data.values import kind_of
from hvdtrain.core.errors import DataError, SpecError

# What a batch's arrays are called beside the model's inputs.
TARGETS, LOSS_WEIGHTS = "targets", "loss_weights"


def split_labels(
    batch: Mapping[str, Any], label_names: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's inputs, and what a function of `task.loss` or `task.metrics` is given.

    Args:
        batch: arrays or tensors by name, `targets` and `loss_weights` among them.
        label_names: those of the task.

    Returns:
        The inputs, without labels; the inputs and the labels by the names that the user's data has.
    """
    given = {name: value for name, value in batch.items() if name not in (TARGETS, LOSS_WEIGHTS)}
    inputs = {name: value for name, value in given.items() if name not in label_names}
    if len(label_names) == 1:
        given |= dict.fromkeys(label_names, batch[TARGETS])
    return inputs, given


def logits_of(outputs: Any) -> Any:
    """The array that a named loss takes: the model's output, what it calls `logits`, or its first element.

    Raises:
        SpecError: the model has returned nothing of this kind.
    """
    found = outputs
    if isinstance(outputs, Mapping) and "logits" in outputs:
        found = outputs["logits"]
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, list | tuple) and len(outputs):
        found = outputs[0]
    if not hasattr(found, "shape"):
        names = f" with {', '.join(map(repr, outputs))}" if isinstance(outputs, Mapping) else ""
        raise SpecError(
            f"model: it returned {kind_of(outputs)}{names}; a named loss or metric takes a tensor, an object "
            "or mapping with logits, or a tuple that begins with them; give a function as task.loss otherwise"
        )
    return found


def check_shapes(field: str, name: str, outputs: tuple[int, ...], targets: tuple[int, ...]) -> None:
    """Refuse outputs that a named loss or metric does not fit.

    Args:
        field: `task.loss` or `task.metrics`.
        name: which.
        outputs: shape of the model's output.
        targets: shape of the labels.

    Raises:
        SpecError: with both shapes.
    """
    values, classes = outputs == targets, outputs[:-1] == targets
    if name in ("mse", "bce_with_logits"):
        fits, expected = values, f"{targets}, that of the labels"
    else:
        fits, expected = classes or (values and name != "cross_entropy"), f"{(*targets, 'classes')}"
    if not fits:
        advice = ""
        if name == "cross_entropy" and len(outputs) == len(targets):
            advice = f", or labels of shape {outputs[:-1]}: numbers of classes, one for each prediction"
        raise SpecError(
            f"{field}: {name}: the model's output has shape {outputs}, and the labels {targets}; expected an "
            f"output of shape {expected}{advice}".replace("'classes'", "classes")
        )


def check_classes(labels: NDArray[Any], classes: int, ignore_index: int) -> None:
    """Refuse labels of `cross_entropy` that are no classes: on a GPU they would end the process, or give NaN.

    Args:
        labels: of a batch, integers.
        classes: that the model tells apart.
        ignore_index: a label that is left out.

    Raises:
        DataError: with the first such label.
    """
    wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= classes))]
    if wrong.size:
        raise DataError(
            f"task.loss: cross_entropy: the model has {classes} classes, and a label is {wrong[0]}; expected "
            f"0 to {classes - 1}, or task.ignore_index ({ignore_index}) where there is nothing to predict"
        )


def check_result(field: str, name: str, found: Any, rows: int) -> tuple[Any, Any] | None:
    """What a function has returned.

    Args:
        field: `task.loss` or `task.metrics`.
        name: the function.
        found: what it returned.
        rows: examples of the batch.

    Returns:
        The pair (sum, weight); None where `found` has one value for each example.

    Raises:
        SpecError: it is neither.
    """
    if isinstance(found, list | tuple) and len(found) == 2:
        shapes = [tuple(getattr(part, "shape", ())) for part in found]
        if shapes != [(), ()]:
            raise SpecError(
                f"{field}: {name} returned a pair of shapes {shapes[0]} and {shapes[1]} for {rows} "
                "example(s); expected two numbers: a sum over examples, and what it is divided by"
            )
        total, weight = found
        return total, weight
    shape = getattr(found, "shape", None)
    # TensorFlow may not know how many rows there are.
    if shape is not None and tuple(shape) in ((rows,), (None,)):
        return None
    told = type(found).__name__ if shape is None else f"shape {tuple(shape)}" if len(shape) else "one number"
    raise SpecError(
        f"{field}: {name} returned {told} for {rows} example(s); expected a value for each, shape ({rows},), "
        "or a pair (sum, weight). A mean does not say how many examples it stands for: use reduction='none'"
    )
