"""A user's dataset, of any kind: batches as stacking by hand gives them."""

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
from tests.core.data.items import RAGGED, Items, N, X, Y, pad


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
