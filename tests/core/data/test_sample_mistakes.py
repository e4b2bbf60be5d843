"""Every mistake in a user's dataset is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hvdtrain.core.data.samples import open_samples
from hvdtrain.core.errors import DataError
from tests.core.data.items import RAGGED, Items, X, Y


def broken(index: int) -> Any:
    if index == 3:
        raise KeyError("pixel")
    return {"x": 1.0}


def not_implemented(index: int) -> Any:
    raise NotImplementedError("flip")


class Iterable(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([])


class CountedIterable(Iterable):
    def __len__(self) -> int:
        return 3


def at_3(normal: Any, other: Any) -> Items:
    return Items(lambda i: other if i == 3 else normal)


MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "text": (
        at_3({"x": 1, "text": 2}, {"x": 1, "text": "hi"}),
        None,
        r"data.dataset\[3\]\['text'\] is a str; expected an array or a number: .*data.collate_fn",
    ),
    "None": (at_3((1, 2), (None, 2)), None, r"data.dataset\[3\]\[0\] is None; expected an array or a number"),
    "an object": (at_3(1, object()), None, r"data.dataset\[3\] is an object; expected an array"),
    "objects": (
        at_3(1, np.array([None])),
        None,
        r"data.dataset\[3\] is an ndarray that holds None; expected an array",
    ),
    "words": (at_3(1, [1, "a"]), None, r"data.dataset\[3\] is a list that holds a str; expected an array"),
    "times": (
        at_3(1, np.zeros(2, "M8[s]")),
        None,
        r"data.dataset\[3\] is an ndarray of datetime64\[s\]; expected",
    ),
    "ragged": (
        at_3(1, [[1], [1, 2]]),
        None,
        r"data.dataset\[3\] is a list that cannot become a NumPy array: ValueError: .*inhomogeneous",
    ),
    "shapes": (
        at_3({"x": np.zeros(4)}, {"x": np.zeros(5)}),
        None,
        r"\[3\]\['x'\] has shape \(5,\), and that of data.dataset\[0\] \(4,\): give data.collate_fn",
    ),
    "dtypes": (
        at_3({"x": 1}, {"x": 1.5}),
        None,
        r"data.dataset\[3\]\['x'\] is float64, and data.dataset\[0\] int64: every sample needs the same",
    ),
    "narrower integers": (
        at_3(np.int32(1), np.int64(2)),
        None,
        r"data.dataset\[3\] is int64, and data.dataset\[0\] int32: every sample needs the same dtype",
    ),
    "not implemented": (
        Items(not_implemented),
        None,
        r"data.dataset\[0\]: NotImplementedError: flip \(.*test_sample_mistakes.py:\d+, in not_implemented\)",
    ),
    "names": (
        at_3({"x": 1}, {"x": 1, "y": 2}),
        None,
        r"data.dataset\[3\] has 'x', 'y', and data.dataset\[0\] 'x': every sample needs the same names",
    ),
    "a name": (at_3({"x": 1}, {1: 1}), None, r"data.dataset\[3\] has the key 1; expected names"),
    "nothing": (at_3({"x": 1}, {}), None, r"data.dataset\[3\] is an empty mapping"),
    "an exception": (
        Items(broken),
        None,
        r"data.dataset\[3\]: KeyError: 'pixel' \(.*test_sample_mistakes.py:\d+, in broken\)",
    ),
    "an exception in a library": (
        Items(lambda i: np.stack([]) if i == 3 else i),
        None,
        r"data.dataset\[3\]: ValueError: need at least one array .*_mistakes.py:\d+, in <lambda>\)",
    ),
    "requires grad": (
        at_3(1.0, torch.zeros(2, requires_grad=True)),
        None,
        r"data.dataset\[3\] is a Tensor that cannot become a NumPy array: RuntimeError",
    ),
    "no length": (
        Iterable(),
        None,
        r"data.dataset is an Iterable, which cannot be read by index; .*map-style",
    ),
    "a counted iterable": (
        CountedIterable(),
        None,
        r"data.dataset is a CountedIterable, which cannot be read",
    ),
    "a generator": (
        (i for i in range(3)),
        None,
        r"data.dataset is a generator, which cannot be read by index",
    ),
    "a number": (5, None, r"data.dataset is an int, which cannot be read by index"),
    "empty": ([], None, r"data.dataset is empty"),
    "empty columns": ({"x": []}, None, r"data.dataset is empty: its columns have no rows"),
    "no columns": ({}, None, r"data.dataset is empty: a mapping without columns"),
    "columns": ({"x": X, "y": Y[:3]}, None, r"differ in their number of rows: 'x' has 11, 'y' has 3"),
    "a text column": (
        {"x": ["a", "b"]},
        None,
        r"data.dataset\['x'\] is a list that holds a str; expected an array",
    ),
    "one number": ({"x": 3}, None, r"data.dataset\['x'\] is a single number; expected a column"),
    "a tuple": ((X, Y), None, r"data.dataset is a tuple; .* such as {'x': x, 'labels': y}"),
    "a wrong batch": (
        RAGGED,
        lambda items: {"x": np.zeros(len(items) + 1)},
        r"data.collate_fn, given data.dataset\[0\], returned 'x' of shape \(2,\); expected 1 in the first",
    ),
    "no batch": (RAGGED, lambda items: None, r"data.collate_fn\(...\) is None; expected an array"),
    "a failing collate": (
        RAGGED,
        lambda items: items[1:][3],
        r"data.collate_fn, given data.dataset\[0\]: IndexError: .*test_sample_mistakes.py:\d+, in <lambda>",
    ),
    "dimensions": (
        RAGGED,
        lambda items: np.zeros((len(items), 1) if len(items) == 1 else len(items)),
        r"given data.dataset\[0, 1, 2, 3, ...\], returned '0' with 1 dimensions, and with 2 for sample 0",
    ),
    "dtypes of batches": (
        RAGGED,
        lambda items: np.zeros(len(items), int if len(items) == 1 else float),
        r"returned '0', which is float64, and for sample 0 int64: every sample needs the same dtype",
    ),
}


@pytest.mark.parametrize(("dataset", "collate_fn", "told"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_told(dataset: Any, collate_fn: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        open_samples(dataset, "data.dataset", collate_fn=collate_fn).draw(np.arange(5))
