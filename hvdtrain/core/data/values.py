"""What a user's dataset or collate function returned, as named arrays, or an error that says what it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.errors import DataError

Arrays = dict[str, NDArray[Any]]
COLLATE = "data.collate_fn"
# NumPy's kinds of dtypes: booleans, integers, fractions, complex numbers.
_NUMBERS = "biufc"


def to_array(value: Any, place: str) -> NDArray[Any]:
    """Make an array of a user's value.

    Args:
        value: whatever NumPy makes an array of.
        place: what the value is called in an error.

    Raises:
        DataError: it is not made of numbers.
    """
    try:
        array = np.asarray(value)
    except Exception as error:
        raise DataError(
            f"{place} is {kind_of(value)} that cannot become a NumPy array: {type(error).__name__}: {error}"
        ) from error
    if array.dtype.kind not in _NUMBERS:
        raise DataError(
            f"{place} is {kind_of(value)}{_holding(value, array)}; expected an array or a number: leave it "
            f"out, or turn it into numbers in the dataset or in {COLLATE}"
        )
    return array


def _holding(value: Any, array: NDArray[Any]) -> str:
    if not isinstance(value, list | tuple | np.ndarray):
        return ""
    if array.dtype.kind not in "OUS":
        return f" of {array.dtype}"
    each = next(
        each for each in np.asarray(value, object).flat if np.asarray(each).dtype.kind not in _NUMBERS
    )
    return f" that holds {kind_of(each)}"


def named(item: Any, label_names: tuple[str, ...], place: str) -> dict[str, tuple[str, Any]]:
    """The values of an item, or of a batch in one of the forms of an item.

    Args:
        item: a mapping, a tuple whose last elements are labels, or one value.
        label_names: of the last elements of a tuple that has more than these; the others are "0", "1", ...
        place: what the item is called in an error.

    Returns:
        By name: what the value is called in an error, and the value.

    Raises:
        DataError: it is empty, or a name is no text.
    """
    if isinstance(item, Mapping):
        if not item:
            raise DataError(f"{place} is an empty mapping")
        check_names(item, place)
        return {name: (f"{place}[{name!r}]", value) for name, value in item.items()}
    if not isinstance(item, tuple):
        return {"0": (place, item)}
    if not item:
        raise DataError(f"{place} is an empty tuple")
    inputs = len(item) - len(label_names) if len(item) > len(label_names) else len(item)
    names = [*map(str, range(inputs)), *label_names][: len(item)]
    return {name: (f"{place}[{i}]", value) for i, (name, value) in enumerate(zip(names, item, strict=True))}


def check_names(found: Mapping[Any, Any], place: str) -> None:
    """DataError where a name is no text."""
    for name in found:
        if not isinstance(name, str):
            raise DataError(f"{place} has the key {name!r}; expected names, which are text")


def same_names(found: Mapping[str, Any], place: str, first: Mapping[str, Any], reference: str) -> None:
    """DataError where the names of arrays are not the ones of sample 0."""
    if found.keys() != first.keys():
        names = [", ".join(map(repr, each)) for each in (found, first)]
        raise DataError(
            f"{place} has {names[0]}, and {reference} {names[1]}: every sample needs the same names"
        )


def cast(array: NDArray[Any], first: NDArray[Any], place: str, reference: str) -> NDArray[Any]:
    """The array in the dtype of sample 0; DataError where that would lose more than a float's precision."""
    if not np.can_cast(array.dtype, first.dtype, "same_kind" if first.dtype.kind in "fc" else "safe"):
        raise DataError(
            f"{place} is {array.dtype}, and {reference} {first.dtype}: every sample needs the same dtype"
        )
    return array.astype(first.dtype, copy=False)


def kind_of(value: Any) -> str:
    """`a str`, `an Image`, `None`."""
    name = type(value).__name__
    article = "an" if name == "ndarray" or name[0] in "aeioAEIO" else "a"
    return "None" if value is None else f"{article} {name}"


def short(numbers: Sequence[int]) -> str:
    """`[3, 1]`, at most four of them."""
    return f"[{', '.join(map(str, numbers[:4]))}{', ...' if len(numbers) > 4 else ''}]"
