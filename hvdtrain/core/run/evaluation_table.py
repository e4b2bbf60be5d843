"""An evaluation as tables for people."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from hvdtrain.core.run.saved_evaluation import SavedEvaluation
from hvdtrain.core.tables import Kind, make_table, print_table
from hvdtrain.core.tasks.classification import f1_by_class

# Of a confusion matrix that is printed.
_MOST_CLASSES = 20


def print_evaluation(found: SavedEvaluation, title: str) -> None:
    """Print an evaluation on standard output: its metrics, and the confusion matrix of classes.

    Args:
        found: the evaluation.
        title: above it.
    """
    columns: dict[str, Kind] = {"metric": "name", "value": "number"}
    rows = [(name.removeprefix("eval_"), _number(value)) for name, value in found.metrics.items()]
    console = Console()
    console.print(title, soft_wrap=True, markup=False, highlight=False)
    print_table(make_table(columns, rows), console)
    if not found.classes:
        return
    confusion = found.confusion
    right, taken, hits = confusion.sum(axis=1), confusion.sum(axis=0), confusion.diagonal()
    kinds: dict[str, Kind] = {
        "class": "name",
        "samples": "number",
        "precision": "number",
        "recall": "number",
        "F1": "number",
    }
    precision, recall = hits / np.maximum(taken, 1), hits / np.maximum(right, 1)
    numbers = zip(precision, recall, f1_by_class(confusion.astype(np.float64)), strict=True)
    table = [
        (name, str(count), *(f"{each:.4f}" for each in three))
        for name, count, three in zip(found.classes, right, numbers, strict=True)
    ]
    print_table(make_table(kinds, table, "each class"))
    if len(found.classes) > _MOST_CLASSES:
        console.print(f"confusion matrix of {len(found.classes)} classes: see --json", highlight=False)
        return
    # A heading is the key of its column; classes have numbers there, since names may be long.
    heads: dict[str, Kind] = {"class": "name", "": "number"}
    heads |= {str(number): "number" for number in range(len(found.classes))}
    cells = [
        (name, str(number), *map(str, row))
        for number, (name, row) in enumerate(zip(found.classes, confusion, strict=True))
    ]
    print_table(make_table(heads, cells, "right class (row) by the class that the model found (column)"))


def _number(value: float | None) -> str:
    if value is None:
        return "nothing to predict"
    return str(int(value)) if float(value).is_integer() and value >= 10 else f"{value:.6g}"
