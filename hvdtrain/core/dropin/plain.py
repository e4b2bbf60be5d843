"""The state of a user's objects as JSON and arrays: nothing of it is pickled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from itertools import zip_longest
from typing import Any

from hvdtrain.core.errors import CheckpointError

# A dictionary with one of these alone stands for what JSON has not.
_ARRAY, _PAIRS, _FLOAT = "hvdtrain.array", "hvdtrain.pairs", "hvdtrain.float"


def take_apart(
    tree: Any, path: str, is_array: Callable[[Any], bool], arrays: MutableMapping[str, Any]
) -> Any:
    """Take the arrays out of a state, so that the rest can be JSON.

    Args:
        tree: dictionaries, lists and tuples of arrays, numbers, texts and None.
        path: of it, for errors and for the names of its arrays: keys and places, joined by dots.
        is_array: whether a leaf is an array.
        arrays: gets them, by their paths.

    Returns:
        The rest; where an array was it has its path.

    Raises:
        CheckpointError: something else is in it, or two paths are equal.
    """

    def inside(value: Any, key: Any) -> Any:
        return take_apart(value, f"{path}.{key}", is_array, arrays)

    if is_array(tree):
        if path in arrays:
            raise CheckpointError(f"{path}: there are two arrays of this name")
        arrays[path] = tree
        return {_ARRAY: path}
    if isinstance(tree, Mapping):
        if all(isinstance(key, str) for key in tree) and _mark_of(tree) is None:
            return {key: inside(value, key) for key, value in tree.items()}
        return {_PAIRS: [[inside(key, "key"), inside(value, key)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return [inside(value, i) for i, value in enumerate(tree)]
    value = tree.item() if hasattr(tree, "dtype") and not getattr(tree, "shape", ()) else tree
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise CheckpointError(
        f"{path}: a {type(tree).__name__} cannot be saved: expected arrays, numbers, texts, lists and "
        "dictionaries (nothing is pickled)"
    )


def put_together(record: Any, find: Callable[[str], Any], like: Any = None) -> Any:
    """The state that `take_apart` took apart.

    Args:
        record: the rest.
        find: gives the array of a path; called in the order of the record.
        like: the same state of an object of today: tuples, and dictionaries of other classes, which JSON does
            not tell from lists and dictionaries, become what they are there.
    """
    if isinstance(record, dict):
        mark = _mark_of(record)
        if mark == _ARRAY:
            return find(record[_ARRAY])
        if mark == _FLOAT:
            return float(record[_FLOAT])
        items: Any = record.items()
        if mark == _PAIRS:
            items = ((put_together(key, find), value) for key, value in record[_PAIRS])
        known = like if isinstance(like, Mapping) else {}
        found = {key: put_together(value, find, known.get(key)) for key, value in items}
        return type(like)(found) if isinstance(like, dict) and type(like) is not dict else found
    if isinstance(record, list):
        alike: Any = like if isinstance(like, list | tuple) else []
        pairs = zip_longest(record, alike[: len(record)])
        each = [put_together(value, find, one) for value, one in pairs]
        return tuple(each) if isinstance(like, tuple) else each
    return record


def _mark_of(tree: Mapping[Any, Any]) -> Any:
    (mark,) = tree if len(tree) == 1 else (None,)
    return mark if mark in (_ARRAY, _PAIRS, _FLOAT) else None
