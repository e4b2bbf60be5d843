"""Classes in a `config.json`: Hugging Face names each of them, the section of a spec counts them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = ("id2label", "label2id")
# Hugging Face leaves a number of classes out of a `config.json` where it is this.
_DEFAULT = 2


def default_labels(num_labels: int) -> dict[str, Any]:
    """The names that Hugging Face gives classes without names, as `config.json` has them."""
    names = [f"LABEL_{number}" for number in range(num_labels)]
    numbers = {name: number for number, name in enumerate(names)}
    return {"id2label": {str(number): name for name, number in numbers.items()}, "label2id": numbers}


def with_num_labels(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """A `config.json` that has `num_labels` in place of the names of classes; neither without a classifier.

    Args:
        config: its content.
        architecture: the model with a classifier.
    """
    found = {name: value for name, value in config.items() if name not in (*_NAMES, "num_labels")}
    if architecture in (config.get("architectures") or ()):
        names = config.get("id2label") or ()
        found["num_labels"] = len(names) or config.get("num_labels") or _DEFAULT
    return found
