"""What an evaluation of classes counts and reports, against scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    top_k_accuracy_score,
)

from hvdtrain.core.data.batches import Batch
from hvdtrain.core.data.labels import Labels, check_names, find_labels
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.classification import ClassMeasures, targets_of


class Saved:
    """An evaluator whose logits are known."""

    def __init__(self, logits: NDArray[np.float64]) -> None:
        self.logits = logits

    def evaluate(self, batch: Batch) -> NDArray[np.float64]:
        raise AssertionError(batch)

    def predict(self, batch: Batch) -> NDArray[Any]:
        rows = batch.inputs["rows"]
        return self.logits[rows]


def batch_of(rows: NDArray[np.int64], labels: NDArray[np.int64], size: int) -> Batch:
    found = targets_of(labels[rows], size)
    # Rows beyond the data have some logits as well.
    padded = np.concatenate([rows, np.zeros(size - len(rows), np.int64)])
    return Batch(
        {"rows": padded}, found.targets, found.loss_weights, found.weight, {"tokens": 0, "samples": len(rows)}
    )


@given(st.integers(2, 9), st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1), st.booleans())
def test_sums_over_any_shares_are_scikit_learns(
    classes: int, samples: int, ranks: int, seed: int, whole: bool
) -> None:
    random = np.random.default_rng(seed)
    # Some classes may be neither right nor found, and some logits equal.
    logits = random.normal(size=(samples, classes)).round(0 if whole else 8)
    labels = random.integers(0, random.integers(1, classes + 1), samples)
    measures = ClassMeasures(classes)
    shares = np.array_split(np.arange(samples), ranks)
    size = max(map(len, shares)) + 1
    sums = sum(measures.count(Saved(logits), batch_of(share, labels, size)) for share in shares)
    assert isinstance(sums, np.ndarray)
    found, everything = measures.means(sums), range(classes)
    guess = logits.argmax(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["accuracy"] == accuracy_score(labels, guess)
        assert found["macro_f1"] == f1_score(labels, guess, average="macro")
        assert found["matthews_correlation"] == matthews_corrcoef(labels, guess)
    assert (measures.confusion(sums) == confusion_matrix(labels, guess, labels=everything)).all()
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    assert found["loss"] == pytest.approx(log_loss(labels, probabilities, labels=everything))
    if classes > 5:
        assert found["top_5_accuracy"] == top_k_accuracy_score(labels, logits, k=5, labels=everything)
    else:
        assert "top_5_accuracy" not in found


def test_nothing_to_predict_has_no_means() -> None:
    measures = ClassMeasures(6)
    empty = np.zeros(0, np.int64)
    sums = measures.count(Saved(np.ones((1, 6))), batch_of(empty, empty, 2))
    assert set(measures.means(sums).values()) == {None}
    assert len(measures.means(sums)) == 5


def test_labels_are_numbered_by_name() -> None:
    assert find_labels({"b", "a"}, (), 2, "x.csv").names == ("a", "b")
    assert find_labels({"10", "9", "-1"}, (), 3, "x.csv").names == ("-1", "9", "10")
    labels = find_labels({"a"}, ("b", "a"), 2, "x.csv")
    assert labels.number("a", "x.csv:3") == 1
    assert labels.config == {"id2label": {"0": "b", "1": "a"}, "label2id": {"b": 0, "a": 1}}


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"x.csv: 2 classes \('a', 'b'\), and model.num_labels is 3"):
        find_labels({"a", "b"}, (), 3, "x.csv")
    with pytest.raises(ValueError, match=r"class_names: 'a' comes twice"):
        check_names(("a", "b", "a"))
    with pytest.raises(DataError, match=r"x.csv: has no rows"):
        find_labels((), (), 2, "x.csv")
    with pytest.raises(DataError, match=r"x.csv: all rows are of one class, 'a'"):
        find_labels({"a"}, (), 2, "x.csv")
    with pytest.raises(DataError, match=r"x.csv:7: label 'c' is none of the 2 classes 'a', 'b'"):
        Labels(("a", "b")).number("c", "x.csv:7")
