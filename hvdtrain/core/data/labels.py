"""Names of classes, and the number of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import user_path

_SHOWN = 10


@dataclass(frozen=True)
class Labels:
    """The classes of a data set; a class's number is its place.

    Attributes:
        names: of the classes.
    """

    names: tuple[str, ...]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def number(self, label: str, where: str) -> int:
        """The number of a class.

        Args:
            label: its name.
            where: the file and row, for the error.

        Raises:
            DataError: there is no such class.
        """
        found = self._numbers.get(label)
        if found is None:
            raise DataError(f"{where}: label {label!r} is none of the {len(self.names)} classes {self}")
        return found

    @property
    def config(self) -> dict[str, Any]:
        """What a saved model's `config.json` says of them, in Hugging Face's names."""
        return {
            "id2label": {str(number): name for name, number in self._numbers.items()},
            "label2id": dict(self._numbers),
        }

    def __str__(self) -> str:
        more = f" and {len(self.names) - _SHOWN} more" if self.names[_SHOWN:] else ""
        return ", ".join(map(repr, self.names[:_SHOWN])) + more


def find_labels(seen: Collection[str], given: Sequence[str], num_labels: int, where: str) -> Labels:
    """The classes of a training set.

    Args:
        seen: every label in it; sorted as numbers where all are whole numbers, else as text.
        given: `data.class_names`; empty: those that are seen.
        num_labels: `model.num_labels`.
        where: the data's name, for errors.

    Raises:
        DataError: there are no labels or but one, or more or fewer than the model tells apart.
    """
    if not seen:
        raise DataError(f"{where}: has no rows, so there is nothing to train on")
    names = tuple(given) or tuple(sorted(seen, key=int if all(map(_is_number, seen)) else None))
    field = "data.class_names" if given else where
    if len(names) == 1:
        raise DataError(
            f"{field}: all rows are of one class, {Labels(names)}, so there is nothing to tell apart; give "
            "data of two classes or more"
        )
    if len(names) != num_labels:
        advice = "" if given else ", or list all classes in data.class_names where the data lacks some"
        raise DataError(
            f"{field}: {len(names)} classes ({Labels(names)}), and model.num_labels is {num_labels}: set "
            f"model.num_labels: {len(names)}{advice}"
        )
    return Labels(names)


def names_in(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes in the content of a `config.json`, in the order of their numbers; or none."""
    given = config.get("id2label") or {}
    return tuple(str(given[number]) for number in sorted(given, key=int))


def check_names(names: Sequence[str]) -> None:
    """ValueError where `data.class_names` has a name twice."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"class_names: {twice[0]!r} comes twice; each class has a name of its own")


def check_order(labels: Labels, init_from: str | None, announce: Callable[[str], None]) -> None:
    """Compare the classes with those of the model that a run starts from.

    Args:
        labels: of the data.
        init_from: `model.init_from`, which has been read before.
        announce: called with a line for the user where they have other names.

    Raises:
        DataError: the folder's `config.json` numbers the same classes otherwise.
    """
    if init_from is None:
        return
    path = user_path(init_from, "model.init_from", DataError) / "config.json"
    names = names_in(json.loads(path.read_text(encoding="utf-8")))
    if len(names) == len(labels.names) and {*names}.isdisjoint(labels.names):
        announce(f"model.init_from: {path} has the classes {Labels(names)}; here they are {labels}")
    if names != labels.names and sorted(names) == sorted(labels.names):
        raise DataError(
            f"data.class_names: the classes are numbered in the order {labels}, and {path} has them as "
            f"{Labels(names)}: set data.class_names: [{', '.join(names)}]"
        )


def _is_number(label: str) -> bool:
    return label.isascii() and label.removeprefix("-").isdigit()
