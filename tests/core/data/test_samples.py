"""A user's dataset, of any kind: batches as stacking by hand gives them, and every mistake told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data.content import look
from hvdtrain.core.data.samples import open_samples
from hvdtrain.core.data.workers import Workers
from hvdtrain.core.errors import DataError

N = 11
X = np.random.default_rng(0).normal(size=(N, 2, 3))
Y = np.random.default_rng(1).integers(0, 4, N)


class Items:
    """Any object with a length that is read by index."""

    def __init__(self, make: Callable[[int], Any], count: int = N) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


class HuggingFace(Items):
    """As `datasets.Dataset`: several are read at once, and values are lists and numbers of Python."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        assert all(type(index) is int for index in indices)
        return [self.make(index) for index in indices]

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read one by one")


class Tensors(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(X[index]), int(Y[index])


KINDS: dict[str, tuple[str, Any]] = {
    "columns": ("x", {"x": X, "labels": Y}),
    "columns of lists and tensors": ("x", {"x": torch.tensor(X), "labels": Y.tolist()}),
    "a list of mappings": ("x", [{"x": X[i], "labels": Y[i]} for i in range(N)]),
    "a list of tuples": ("0", [(X[i], int(Y[i])) for i in range(N)]),
    "an object": ("x", Items(lambda i: {"labels": Y[i], "x": X[i]})),
    "a torch Dataset": ("0", Tensors()),
    "a torch TensorDataset": ("0", torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))),
    "a torch Subset": ("0", torch.utils.data.Subset(Tensors(), range(N))),
    "like Hugging Face": ("x", HuggingFace(lambda i: {"x": X[i].tolist(), "labels": int(Y[i])})),
}
kinds = pytest.mark.parametrize(("name", "dataset"), KINDS.values(), ids=list(KINDS))
indices = st.lists(st.integers(0, N - 1), min_size=1, max_size=2 * N)


@kinds
@given(chosen=indices)
def test_a_batch_is_its_samples_stacked(name: str, dataset: Any, chosen: list[int]) -> None:
    samples = open_samples(dataset, "data.dataset")
    found = samples.draw(np.array(chosen))
    assert len(samples) == N
    assert found.keys() == samples.empty.keys() == {name, "labels"}
    for key, expected in ((name, X), ("labels", Y)):
        np.testing.assert_array_equal(found[key], np.stack([expected[i] for i in chosen]))
        assert found[key].dtype == expected.dtype == samples.empty[key].dtype
        assert samples.empty[key].shape == (0, *expected.shape[1:])


@pytest.mark.parametrize(
    ("label_names", "names"),
    [(("labels",), ["0", "1", "labels"]), (("a", "b"), ["0", "a", "b"]), ((), ["0", "1", "2"])],
)
def test_the_last_elements_of_a_tuple_are_the_labels(label_names: tuple[str, ...], names: list[str]) -> None:
    samples = open_samples(Items(lambda i: (i, i + 1, i + 2)), "data.dataset", label_names)
    assert [*samples.draw(np.array([5, 2]))] == names
    np.testing.assert_array_equal(samples.draw(np.array([5, 2]))[names[1]], [6, 3])


@pytest.mark.parametrize("item", [lambda i: X[i], lambda i: (X[i],)], ids=["one array", "a tuple of one"])
def test_a_sample_without_a_label(item: Callable[[int], Any]) -> None:
    assert [*open_samples(Items(item), "data.dataset").empty] == ["0"]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(1, "int64"), (1.5, "float64"), (True, "bool"), (np.float32(2), "float32"), (np.uint8(3), "uint8")],
)
def test_dtypes_are_the_users(value: Any, dtype: str) -> None:
    assert open_samples([{"x": value}], "data.dataset").draw(np.array([0]))["x"].dtype == dtype


def test_a_whole_number_among_fractions_changes_no_dtype() -> None:
    samples = open_samples([{"x": 0.5}, {"x": 2}], "data.dataset")
    np.testing.assert_array_equal(samples.draw(np.array([1]))["x"], np.array([2.0]))
    assert samples.draw(np.array([1]))["x"].dtype == "float64"


def pad(items: list[dict[str, Any]]) -> dict[str, Any]:
    width = max(len(item["ids"]) for item in items)
    ids = [np.pad(item["ids"], (0, width - len(item["ids"]))) for item in items]
    return {"ids": np.stack(ids), "labels": np.array([item["labels"] for item in items])}


RAGGED = [{"ids": np.arange(1, 2 + i), "labels": i, "text": "dropped"} for i in range(N)]


@given(chosen=indices)
def test_a_collate_function_pads(chosen: list[int]) -> None:
    found = open_samples(RAGGED, "data.dataset", collate_fn=pad).draw(np.array(chosen))
    assert found["ids"].shape == (len(chosen), max(chosen) + 1)
    for row, i in zip(found["ids"], chosen, strict=True):
        np.testing.assert_array_equal(row, [*range(1, i + 2), *[0] * (len(row) - i - 1)])
    np.testing.assert_array_equal(found["labels"], chosen)


def test_a_collate_function_gets_rows_of_columns() -> None:
    samples = open_samples({"x": X, "labels": Y}, "data.dataset", collate_fn=torch.utils.data.default_collate)
    found = samples.draw(np.array([3, 1]))
    np.testing.assert_array_equal(found["x"], X[[3, 1]])
    np.testing.assert_array_equal(found["labels"], Y[[3, 1]])


def test_torchs_collate_function_makes_lists_of_tuples() -> None:
    samples = open_samples(Tensors(), "data.dataset", collate_fn=torch.utils.data.default_collate)
    found = samples.draw(np.array([3, 1]))
    assert [*found] == ["0", "labels"]
    np.testing.assert_array_equal(found["0"], X[[3, 1]])


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
        r"data.dataset\[0\]: NotImplementedError: flip \(.*test_samples.py:\d+, in not_implemented\)",
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
        r"data.dataset\[3\]: KeyError: 'pixel' \(.*test_samples.py:\d+, in broken\)",
    ),
    "an exception in a library": (
        Items(lambda i: np.stack([]) if i == 3 else i),
        None,
        r"data.dataset\[3\]: ValueError: need at least one array .*test_samples.py:\d+, in <lambda>\)",
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
        r"data.collate_fn, given data.dataset\[0\]: IndexError: .*test_samples.py:\d+, in <lambda>",
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


def test_what_is_read_at_once_has_to_be_as_many() -> None:
    class Short(HuggingFace):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return super().__getitems__(indices)[:2]

    with pytest.raises(
        DataError, match=r"__getitems__\(\[0, 1, 2, 3, ...\]\) returned a list; expected .* 5 item"
    ):
        open_samples(Short(lambda i: i), "data.dataset").draw(np.arange(5))


def facts(*datasets: Any) -> list[dict[str, Any]]:
    opened = [open_samples(each, "data.dataset") for each in datasets]
    return [dict(look(Workers(0, (each,)), 0, len(each)).facts) for each in opened]


def test_a_look_says_what_differs() -> None:
    other = X.copy()
    other[-1, -1, -1] += 1
    one, same, shorter, changed, cast = facts(
        {"x": X}, {"x": X}, {"x": X[:9]}, {"x": other}, {"x": X.astype("f4")}
    )
    assert one == same
    assert (one["samples"], one["arrays"]) == (N, {"x": "float64 (2, 3)"})
    assert shorter["samples"] == 9
    assert changed["content"] != one["content"]
    assert cast["arrays"] == {"x": "float32 (2, 3)"}


def test_what_differs_each_time_is_not_compared() -> None:
    own = np.random.default_rng()
    (found,) = facts(Items(lambda i: own.normal()))
    assert found == {"samples": N, "arrays": {"0": "float64 ()"}}


def test_what_the_global_generators_draw_is_equal_on_all_ranks_and_changes_nothing() -> None:
    augmented = Items(lambda i: X[i] + np.random.normal() + torch.rand(1).item())
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index, union-attr]
    first, second = facts(augmented, augmented)
    assert first == second
    assert "content" in first
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[1])
