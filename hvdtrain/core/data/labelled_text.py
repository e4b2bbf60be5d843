"""Texts with labels: the data section that names them, and where they come from, one row at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from hvdtrain.core.data.labels import check_names
from hvdtrain.core.data.python_parts import PART_NAMES, python_parts
from hvdtrain.core.data.records import as_text, class_names, records
from hvdtrain.core.data.text import SourceSpec
from hvdtrain.core.data.wordpiece import WordPieceScheme
from hvdtrain.core.errors import DataError


class LabelledTextSpec(SourceSpec):
    """Rows of one text or two, each with a label.

    Attributes:
        text_pair_field: the field of the second text; None: rows have one.
        label_field: the field of the label.
        class_names: the classes in their order; empty: those in the training data.
        lowercase: whether a trained tokenizer converts letters to lower case.
        strip_accents: whether it takes combining marks away.
    """

    text_pair_field: str | None = None
    label_field: str = "label"
    class_names: tuple[str, ...] = ()
    lowercase: bool = True
    strip_accents: bool = False

    @property
    def scheme(self) -> WordPieceScheme:
        """How a tokenizer is trained."""
        return WordPieceScheme(self.lowercase, self.strip_accents)

    @property
    def columns(self) -> dict[str, str]:
        """The fields that are read, each with the field of the spec that names it."""
        pair = {self.text_pair_field: "data.text_pair_field"} if self.text_pair_field else {}
        return {self.text_field: "data.text_field", **pair, self.label_field: "data.label_field"}

    @model_validator(mode="after")
    def _fields_fit(self) -> LabelledTextSpec:
        check_names(self.class_names)
        if self.corpus is not None and self.text_pair_field is not None:
            raise ValueError(f"corpus: {self.corpus} has no pairs of texts: leave text_pair_field out")
        if len(self.columns) < 2 + (self.text_pair_field is not None):
            raise ValueError("text_field, text_pair_field and label_field must be different fields")
        return self


@dataclass(frozen=True)
class Row:
    """A text with its label.

    Attributes:
        where: the file and the row, for errors.
        text: with at least one character that is not white space.
        pair: the second text, likewise; None where rows have one.
        label: the name of its class.
    """

    where: str
    text: str
    pair: str | None
    label: str


def labelled_rows(data: LabelledTextSpec, files: Mapping[Path, str]) -> Iterator[Row]:
    """Every row, in an order that is the same on every node.

    Args:
        data: the spec's data section.
        files: digests of the files to read by path, in order; none: the embedded corpus.

    Raises:
        DataError: a file cannot be read, or a row has no text or no label; the message has the file and row.
    """
    if not files:
        for topic, paragraph, part in python_parts():
            yield Row(f"data.corpus {data.corpus}, topic {topic}", paragraph, None, part)
        return
    for path, digest in files.items():
        for where, values in records(path, data.columns, digest):
            pair = None if data.text_pair_field is None else _text(values, data.text_pair_field, where)
            label = _label(values[data.label_field], data.label_field, where)
            yield Row(where, _text(values, data.text_field, where), pair, label)


def known_classes(data: LabelledTextSpec, files: Mapping[Path, str]) -> tuple[str, ...]:
    """The classes in their order, where the spec, the corpus or the first file to train on says them."""
    if data.class_names:
        return data.class_names
    if not files:
        return PART_NAMES
    return class_names(next(iter(files)), data.label_field) or ()


def _text(values: Mapping[str, Any], field: str, where: str) -> str:
    found = as_text(values[field], field, where)
    if not found or found.isspace():
        raise DataError(f"{where}: field {field!r} is empty; give every row a text, or leave the row out")
    return found


def _label(value: Any, field: str, where: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value and not value.isspace():
        return as_text(value, field, where)
    missing = value is None or isinstance(value, str)
    found = "null" if value is None else "nothing" if missing else type(value).__name__
    advice = "give every row a label, or leave the row out" if missing else "write a name or a whole number"
    raise DataError(
        f"{where}: field {field!r} should be the name or number of a class, found {found}; {advice}"
    )
