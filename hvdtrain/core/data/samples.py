"""A user's dataset, of any kind that has a length and is read by index, as batches of named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.order import Indices
from hvdtrain.core.data.values import (
    COLLATE,
    Arrays,
    cast,
    check_names,
    kind_of,
    named,
    same_names,
    short,
    to_array,
)
from hvdtrain.core.errors import DataError
from hvdtrain.core.user_code import user_code


class Samples(Protocol):
    """What a dataset is read through.

    Attributes:
        empty: a batch of no samples: the names, dtypes and shapes of sample 0's.
    """

    @property
    def empty(self) -> Arrays: ...

    def __len__(self) -> int: ...

    def draw(self, indices: Indices, before: Callable[[int], object] = lambda index: None) -> Arrays:
        """A batch of samples.

        Args:
            indices: which, int64 (at least 1,).
            before: called with the index of a sample before it is read, or of the first one where several
                are read at once.

        Returns:
            Arrays by name, each (len(indices), ...), of the dtypes of `empty`.

        Raises:
            DataError: the user's code failed, or what it returned is not arrays that fit together.
        """
        ...


def open_samples(
    dataset: Any, field: str, label_names: Sequence[str] = ("labels",), collate_fn: Any = None
) -> Samples:
    """Read a dataset.

    Args:
        dataset: an object with `len(dataset)` and `dataset[i]`, which gives a mapping of names to arrays,
            a tuple `(x1, ..., xn, y)` or one array; or a mapping of names to columns. Arrays are whatever
            NumPy makes arrays of: numbers, lists, PyTorch's tensors on the CPU.
        field: of the spec, for errors.
        label_names: what the last elements of a tuple are called; those before are "0", "1", ...
        collate_fn: makes a list of items the arrays of a batch, in any of the forms of an item, with the
            items along the first dimension; None: equal shapes are stacked.

    Raises:
        DataError: it is nothing of this kind, or empty.
    """
    if isinstance(dataset, Mapping):
        columns = _columns(dataset, field)
        if collate_fn is None:
            return Columns(columns)
        dataset = _Rows(columns)
    elif isinstance(dataset, tuple | str | bytes):
        raise DataError(
            f"{field} is a {type(dataset).__name__}; expected an object with len(dataset) and dataset[i], or "
            "a mapping of names to arrays, such as {'x': x, 'labels': y}"
        )
    count = length_of(dataset, field)
    return Items(dataset, count, field, tuple(label_names), collate_fn)


class Columns:
    """A dataset held as one array a name."""

    def __init__(self, columns: Arrays) -> None:
        self._columns = columns
        self.empty: Arrays = {name: column[:0] for name, column in columns.items()}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def draw(self, indices: Indices, before: Callable[[int], object] = lambda index: None) -> Arrays:
        """As `Samples.draw`."""
        before(int(indices[0]))
        return {name: column[indices] for name, column in self._columns.items()}


class Items:
    """A dataset that gives one item at a time, or with `__getitems__` several."""

    def __init__(
        self, dataset: Any, count: int, field: str, label_names: tuple[str, ...], collate_fn: Any
    ) -> None:
        self._dataset, self._count, self._field = dataset, count, field
        self._label_names, self._collate_fn = label_names, collate_fn

    def __len__(self) -> int:
        return self._count

    @cached_property
    def empty(self) -> Arrays:
        """As `Samples.empty`; reads sample 0."""
        return {name: array[:0].copy() for name, array in self._batch([0], None).items()}

    def draw(self, indices: Indices, before: Callable[[int], object] = lambda index: None) -> Arrays:
        """As `Samples.draw`."""
        return self._batch(indices.tolist(), self.empty, before)

    def _batch(
        self, numbers: list[int], like: Arrays | None, before: Callable[[int], object] = lambda index: None
    ) -> Arrays:
        items = self._read(numbers, before)
        return (self._stack if self._collate_fn is None else self._collate)(numbers, items, like)

    def _read(self, numbers: list[int], before: Callable[[int], object]) -> list[Any]:
        if not callable(getattr(self._dataset, "__getitems__", None)):
            return [self._item(number, before) for number in numbers]
        before(numbers[0])
        what = f"{self._field}.__getitems__({short(numbers)})"
        with user_code(what, type(self._dataset)):
            items = self._dataset.__getitems__(numbers)
        if not isinstance(items, list | tuple) or len(items) != len(numbers):
            raise DataError(f"{what} returned {kind_of(items)}; expected a list of {len(numbers)} item(s)")
        return list(items)

    def _item(self, number: int, before: Callable[[int], object]) -> Any:
        before(number)
        with user_code(f"{self._field}[{number}]", type(self._dataset)):
            try:
                return self._dataset[number]
            except NotImplementedError as error:
                # PyTorch's iterable datasets inherit a method that raises it.
                if not hasattr(type(self._dataset), "__iter__"):
                    raise
                raise _not_by_index(self._dataset, self._field) from error

    def _stack(self, numbers: list[int], items: list[Any], like: Arrays | None) -> Arrays:
        whole: dict[str, list[NDArray[Any]]] = {}
        for number, item in zip(numbers, items, strict=True):
            row = named(item, self._label_names, f"{self._field}[{number}]")
            like = like or {name: to_array(value, place)[None] for name, (place, value) in row.items()}
            same_names(row, f"{self._field}[{number}]", like, f"{self._field}[0]")
            for name, (place, value) in row.items():
                array, first = to_array(value, place), like[name]
                if array.shape != first.shape[1:]:
                    raise DataError(
                        f"{place} has shape {array.shape}, and that of {self._field}[0] {first.shape[1:]}: "
                        f"give {COLLATE}, which makes a list of such items a batch, for example by padding"
                    )
                whole.setdefault(name, []).append(cast(array, first, place, f"{self._field}[0]"))
        return {name: np.stack(whole[name]) for name in like or ()}

    def _collate(self, numbers: list[int], items: list[Any], like: Arrays | None) -> Arrays:
        place = f"{COLLATE}, given {self._field}{short(numbers)},"
        with user_code(place.rstrip(","), self._collate_fn):
            returned = self._collate_fn(items)
        # PyTorch's default_collate makes lists of tuples.
        batch = tuple(returned) if isinstance(returned, list) else returned
        parts = named(batch, self._label_names, f"{COLLATE}(...)")
        found = {name: to_array(value, where) for name, (where, value) in parts.items()}
        for name, array in found.items():
            if array.shape[:1] != (len(numbers),):
                raise DataError(
                    f"{place} returned {name!r} of shape {array.shape}; expected {len(numbers)} in the first "
                    "dimension, the number of samples"
                )
        if like is None:
            return found
        same_names(found, f"{place} returned a batch that", like, "the one of sample 0")
        for name, array in found.items():
            if array.ndim != like[name].ndim:
                raise DataError(
                    f"{place} returned {name!r} with {array.ndim} dimensions, and with {like[name].ndim} for "
                    "sample 0: every batch needs the same number"
                )
        return {
            name: cast(found[name], first, f"{place} returned {name!r}, which", "for sample 0")
            for name, first in like.items()
        }


class _Rows:
    """Columns read one row at a time, for a collate function."""

    def __init__(self, columns: Arrays) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index: int) -> Arrays:
        return {name: column[index] for name, column in self._columns.items()}


def _columns(dataset: Mapping[Any, Any], field: str) -> Arrays:
    if not dataset:
        raise DataError(f"{field} is empty: a mapping without columns")
    check_names(dataset, field)
    columns = {name: to_array(column, f"{field}[{name!r}]") for name, column in dataset.items()}
    for name, column in columns.items():
        if not column.ndim:
            raise DataError(
                f"{field}[{name!r}] is a single number; expected a column, with a row for each sample"
            )
    lengths = {name: len(column) for name, column in columns.items()}
    if len({*lengths.values()}) > 1:
        told = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise DataError(f"{field}: columns differ in their number of rows: {told}")
    if not next(iter(lengths.values())):
        raise DataError(f"{field} is empty: its columns have no rows")
    return columns


def length_of(dataset: Any, field: str) -> int:
    """How many samples a map-style dataset has.

    Args:
        dataset: an object with `len(dataset)` and `dataset[i]`.
        field: what it is called in errors.

    Raises:
        DataError: it is something else, or empty.
    """
    if not hasattr(type(dataset), "__len__") or not hasattr(type(dataset), "__getitem__"):
        raise _not_by_index(dataset, field)
    with user_code(f"len({field})", type(dataset)):
        count = len(dataset)
    if not count:
        raise DataError(f"{field} is empty")
    return count


def _not_by_index(dataset: Any, field: str) -> DataError:
    return DataError(
        f"{field} is {kind_of(dataset)}, which cannot be read by index; expected a map-style dataset, with "
        "len(dataset) and dataset[i]: samples are shuffled, cut among the ranks and resumed by their index"
    )
