"""What tasks that tell classes apart have in common: targets, and what an evaluation counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.batches import Batch
from hvdtrain.core.tasks.task import Evaluator
from hvdtrain.core.update.losses import cross_entropy

# Of how many likeliest classes one must be right.
TOP = 5


@dataclass(frozen=True, eq=False)
class Targets:
    """The right classes of a micro-batch.

    Attributes:
        targets: the right class of each row, int32 (rows, 1); 0 beyond the data.
        loss_weights: 1 for each real row, 0 beyond the data, float64 (rows, 1).
        weight: how many rows are real.
    """

    targets: NDArray[np.int32]
    loss_weights: NDArray[np.float64]
    weight: float


def targets_of(labels: NDArray[np.integer], rows: int) -> Targets:
    """What a micro-batch learns: one class a row.

    Args:
        labels: of the real rows, (at most rows,).
        rows: of the micro-batch.
    """
    targets, loss_weights = np.zeros((rows, 1), np.int32), np.zeros((rows, 1))
    targets[: len(labels), 0] = labels
    loss_weights[: len(labels)] = 1.0
    return Targets(targets, loss_weights, float(len(labels)))


@dataclass(frozen=True)
class ClassMeasures:
    """Loss, accuracy, macro-F1, Matthews correlation and top-5 accuracy, from sums over all predictions.

    Attributes:
        classes: how many.
    """

    classes: int

    @property
    def names(self) -> tuple[str, ...]:
        """As `Measures.names`."""
        always = "loss", "accuracy", "macro_f1", "matthews_correlation"
        return (*always, "top_5_accuracy") if self.classes > TOP else always

    def count(self, evaluator: Evaluator, batch: Batch) -> NDArray[np.float64]:
        """As `Measures.count`.

        Returns:
            The summed loss, how many predictions there are, for how many of them the right class is among
            the five likeliest, and the confusion matrix, row by row: how often a class (row) was taken for
            another (column).
        """
        real = batch.loss_weights[:, 0] > 0.0
        logits = evaluator.predict(batch)[real].astype(np.float64)
        right = batch.targets[real, 0].astype(np.int64)
        found = logits.argmax(axis=1)
        confusion = np.bincount(right * self.classes + found, minlength=self.classes**2)
        among = (_likeliest(logits) == right[:, None]).any(axis=1)
        sums = [cross_entropy(logits, right).sum() if len(right) else 0.0, len(right), among.sum()]
        return np.concatenate([sums, confusion]).astype(np.float64)

    def means(self, sums: NDArray[np.float64]) -> dict[str, float | None]:
        """As `Measures.means`, each as scikit-learn defines it.

        Returns:
            `loss` and `accuracy`, divided by the number of predictions; `macro_f1`, the mean of F1 over the
            classes that were right or found at least once; `matthews_correlation`, 0 where only one class was
            right or found; `top_5_accuracy` where there are more than five classes.
        """
        (loss, count, among), confusion = sums[:3], self.confusion(sums)
        if not count:
            return dict.fromkeys(self.names)
        found = [loss / count, np.trace(confusion) / count, macro_f1(confusion), matthews(confusion)]
        return {n: float(v) for n, v in zip(self.names, [*found, among / count], strict=False)}

    def confusion(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The confusion matrix among the sums, (classes, classes): the right class by the found class."""
        return sums[3:].reshape(self.classes, self.classes)


def f1_by_class(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """F1 of each class, (classes,): twice its hits, divided by how often it was right plus how often found.

    It is 0 where a class was neither right nor found.
    """
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    return 2.0 * confusion.diagonal() / np.where(both > 0.0, both, 1.0)


def macro_f1(confusion: NDArray[np.float64]) -> float:
    """The mean of F1 over the classes that were right or found at least once."""
    seen = confusion.sum(axis=0) + confusion.sum(axis=1) > 0.0
    return float(np.average(f1_by_class(confusion)[seen]))


def matthews(confusion: NDArray[np.float64]) -> float:
    """The correlation of right and found classes (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006)."""
    right, found, count = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    both = confusion.trace() * count - np.dot(right, found)
    own = (count**2 - np.dot(found, found)) * (count**2 - np.dot(right, right))
    return float(both / np.sqrt(own)) if own else 0.0


def _likeliest(logits: NDArray[np.float64]) -> NDArray[np.int64]:
    """The likeliest classes of each row, (rows, at most `TOP`); of equal ones the last, as scikit-learn."""
    return np.argsort(logits, axis=1, kind="mergesort")[:, ::-1][:, :TOP]
