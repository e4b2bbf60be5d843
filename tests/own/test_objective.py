"""Losses and metrics of a user's model in both frameworks, against NumPy's formulas."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

from hvdtrain.core.errors import SpecError
from hvdtrain.core.tasks.custom import TaskSpec, make_batch
from hvdtrain.tensorflow import model as tensorflow_model
from hvdtrain.tensorflow.objective import build_objective as tensorflow_objective
from hvdtrain.torch import model as torch_model
from hvdtrain.torch.objective import build_objective as torch_objective

RANDOM = np.random.default_rng(0)
ROWS, LENGTH, CLASSES = 5, 4, 3
Wrap = Callable[[Any], Any]
Output = namedtuple("Output", "logits")


def sums(task: TaskSpec, outputs: np.ndarray, labels: np.ndarray, wrap: Wrap = lambda x: x) -> np.ndarray:
    """Sum and weight of the loss and of each metric, which both frameworks agree about, (means, 2)."""
    batch, found = make_batch({"x": np.zeros(len(labels)), "labels": labels}, task), []
    for objective, tensors, tensor in (
        (torch_objective(task, torch.float64), torch_model.tensors, torch.from_numpy),
        (tensorflow_objective(task, tf.float64), tensorflow_model.tensors, tf.constant),
    ):
        given, made = tensors(batch), wrap(tensor(outputs))
        each = objective.loss(made, given), *objective.metrics(made, given)
        assert objective.count == len(each)
        found.append([[float(part) for part in pair[:2]] for pair in each])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    return np.array(found[0])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pick(array: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.take_along_axis(array, labels[..., None], -1)[..., 0]


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_cross_entropy_and_accuracy_of_classes(dtype: str) -> None:
    logits, labels = RANDOM.normal(size=(ROWS, CLASSES)), RANDOM.integers(0, CLASSES, ROWS)
    loss, accuracy = sums(TaskSpec(metrics=("accuracy",)), logits, labels.astype(dtype))
    np.testing.assert_allclose(loss, [-pick(log_softmax(logits), labels).sum(), ROWS], rtol=1e-12)
    np.testing.assert_array_equal(accuracy, [(logits.argmax(-1) == labels).sum(), ROWS])


def test_booleans_are_two_classes() -> None:
    logits, labels = RANDOM.normal(size=(ROWS, 2)), RANDOM.random(ROWS) < 0.5
    (loss, _), *_ = sums(TaskSpec(), logits, labels)
    assert loss == pytest.approx(-pick(log_softmax(logits), labels.astype(int)).sum(), rel=1e-12)


@pytest.mark.parametrize("normalize", ["token", "example"])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_what_is_left_out_counts_nowhere(normalize: Any, ignored: int) -> None:
    logits = RANDOM.normal(size=(ROWS, LENGTH, CLASSES))
    labels = RANDOM.integers(0, CLASSES, (ROWS, LENGTH))
    labels[0], labels[1:, 0] = ignored, ignored
    task = TaskSpec(metrics=("accuracy",), normalize=normalize, ignore_index=ignored)
    valid = labels != ignored
    share = valid / np.maximum(valid.sum(1, keepdims=True), 1) if normalize == "example" else valid
    each = -pick(log_softmax(logits), np.where(valid, labels, 0))
    loss, accuracy = sums(task, logits, labels)
    np.testing.assert_allclose(loss, [(each * share).sum(), share.sum()], rtol=1e-12)
    np.testing.assert_allclose(
        accuracy, [((logits.argmax(-1) == labels) * share).sum(), share.sum()], rtol=1e-12
    )


@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 2)])
def test_squares_and_binary_cross_entropies_are_those_of_elements(shape: tuple[int, ...]) -> None:
    outputs, labels = RANDOM.normal(size=shape), RANDOM.random(shape)
    (loss,) = sums(TaskSpec(loss="mse"), outputs, labels)
    np.testing.assert_allclose(loss, [((outputs - labels) ** 2).sum(), outputs.size], rtol=1e-12)
    sides = labels > 0.5
    loss, accuracy = sums(TaskSpec(loss="bce_with_logits", metrics=("accuracy",)), outputs, sides)
    chances = 1.0 / (1.0 + np.exp(-outputs))
    expected = -np.where(sides, np.log(chances), np.log(1.0 - chances)).sum()
    np.testing.assert_allclose(loss, [expected, outputs.size], rtol=1e-12)
    np.testing.assert_array_equal(accuracy, [((outputs > 0) == sides).sum(), outputs.size])


@pytest.mark.parametrize(
    "wrap",
    [Output, lambda x: {"logits": x}, lambda x: (x, "more"), lambda x: [x]],
    ids=("attribute", "mapping", "tuple", "list"),
)
def test_what_models_return_around_their_logits(wrap: Wrap) -> None:
    logits, labels = RANDOM.normal(size=(ROWS, CLASSES)), RANDOM.integers(0, CLASSES, ROWS)
    task = TaskSpec(metrics=("accuracy",))
    np.testing.assert_array_equal(sums(task, logits, labels, wrap), sums(task, logits, labels))


@pytest.mark.parametrize(
    ("loss", "outputs", "labels"),
    [
        ("cross_entropy", (ROWS,), (ROWS,)),
        ("cross_entropy", (ROWS, LENGTH), (ROWS, LENGTH)),
        # Classes are last.
        ("cross_entropy", (ROWS, CLASSES, LENGTH), (ROWS, LENGTH)),
        ("mse", (ROWS, 1), (ROWS,)),
        ("bce_with_logits", (ROWS, 2), (ROWS,)),
    ],
)
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_outputs_that_do_not_fit_are_told(
    framework: str, loss: str, outputs: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    task = TaskSpec(loss=loss)
    batch = make_batch({"x": np.zeros(ROWS), "labels": np.zeros(labels, np.int64)}, task)
    with pytest.raises(SpecError) as raised:
        if framework == "torch":
            torch_objective(task, torch.float64).loss(torch.zeros(outputs), torch_model.tensors(batch))
        else:
            tensorflow_objective(task, tf.float64).loss(tf.zeros(outputs), tensorflow_model.tensors(batch))
    told = f"task.loss: {loss}: the model's output has shape {outputs}, and the labels {labels}; expected"
    assert str(raised.value).startswith(told)


def test_a_function_gets_all_that_the_data_has_by_its_names() -> None:
    seen: list[set[str]] = []

    def loss(outputs: Any, batch: Any) -> Any:
        seen.append({*batch})
        return outputs["any"], 2

    task = TaskSpec(loss=loss, metrics=("accuracy", loss), label_names=("target",))
    batch = make_batch({"x": np.zeros(ROWS), "target": np.zeros(ROWS, np.int64)}, task)
    logits = np.eye(CLASSES)[[0, 1, 0, 0, 2]]
    for objective, tensors, tensor in (
        (torch_objective(task, torch.float64), torch_model.tensors, torch.tensor),
        (tensorflow_objective(task, tf.float64), tensorflow_model.tensors, tf.constant),
    ):
        given = tensors(batch)
        outputs = {"any": tensor(3.0), "logits": tensor(logits)}
        found = [objective.loss(outputs, given), *objective.metrics(outputs, given)]
        assert [(float(a), float(b), known) for a, b, known in found] == [
            (3.0, 2.0, True),
            (3.0, 5.0, False),
            (3.0, 2.0, True),
        ]
        assert objective.inputs(given).keys() == {"x"}
    assert seen == [{"x", "target"}] * 4


def test_rows_that_a_graph_does_not_know_are_a_loss_each() -> None:
    @tf.function
    def total(outputs: tf.Tensor) -> tf.Tensor:
        return objective.loss(outputs, given)[0]

    task = TaskSpec(loss=lambda outputs, batch: tf.boolean_mask(outputs, outputs > 0.0))
    batch = make_batch({"x": np.zeros(ROWS), "labels": np.zeros(ROWS, np.int64)}, task)
    objective, given = tensorflow_objective(task, tf.float64), tensorflow_model.tensors(batch)
    assert float(total(tf.ones(ROWS, tf.float64))) == ROWS
