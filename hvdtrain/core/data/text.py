"""The data section of tasks on text, and how text becomes sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field, model_validator

from hvdtrain.core.data.packing import Tokens
from hvdtrain.core.data.records import SUFFIXES
from hvdtrain.core.errors import SpecError
from hvdtrain.core.spec.sections import DataSection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TokenIds:
    """What training needs of a tokenizer: `size` is its highest id plus 1, `special` all ids never masked."""

    size: int
    pad: int
    cls: int
    sep: int
    mask: int
    special: tuple[int, ...]


class Scheme(Protocol):
    """A kind of tokenizer, and how its tokens become sequences."""

    @property
    def key(self) -> str:
        """What differs between tokenizers trained on the same text; part of the name of a cache."""
        ...

    def train(self, documents: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
        """Train a tokenizer; the same documents always give the same one.

        Args:
            documents: gives the documents from the start at each call.
            vocab_size: upper bound of the number of tokens.
        """
        ...

    def token_ids(
        self, tokenizer: Tokenizer, vocab_size: int, where: str, beside: Mapping[str, str] | None = None
    ) -> TokenIds:
        """The ids that training needs.

        Args:
            tokenizer: trained or given.
            vocab_size: the model's.
            where: what to call the tokenizer in an error.
            beside: from `named_beside`; None: nothing.

        Raises:
            DataError: the tokenizer has more tokens than the model, or lacks a special one.
        """
        ...

    def sequences(
        self, documents: Iterable[list[int]], length: int, packing: bool, ids: TokenIds
    ) -> Iterator[Tokens]:
        """Cut and join documents.

        Args:
            documents: token ids of each, without special tokens.
            length: of a full sequence.
            packing: whether documents share sequences.
            ids: of the tokenizer.
        """
        ...


class SourceSpec(DataSection):
    """Where text comes from, what is kept for evaluation, and which tokenizer reads it.

    Attributes:
        files: paths, globs, and folders written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`.
        validation_files: the same, to evaluate on.
        validation_split: share of the training samples to evaluate on instead; None: see `split_share`.
    """

    corpus: Literal["python-docs"] | None = None
    files: tuple[str, ...] = ()
    validation_files: tuple[str, ...] = ()
    text_field: str = "text"
    tokenizer_file: str | None = None
    max_seq_length: Annotated[int, Field(ge=8)] = 128
    validation_split: Annotated[float, Field(ge=0.0, le=0.5)] | None = None
    cache_dir: str | None = None

    @property
    def why_empty(self) -> str:
        """As `DataSection.why_empty`."""
        return (
            "their text has no token that the tokenizer knows; give other data.files, a "
            "data.tokenizer_file that fits them or a larger model.vocab_size"
        )

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the names of its files end with."""
        return SUFFIXES

    @classmethod
    def of_pretrained(cls, folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
        """As `DataSection.of_pretrained`: the tokenizer."""
        if "tokenizer_file" in given:
            return {}
        file = folder / TOKENIZER_FILE
        if not file.is_file():
            raise SpecError(
                f"data.tokenizer_file: required: model.init_from {folder} has no {TOKENIZER_FILE}, and a "
                "new tokenizer has other tokens. A folder with a vocab.txt alone becomes "
                "one with both by transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        return {"tokenizer_file": str(file)}

    @property
    def split_share(self) -> float:
        """Share of the training samples to evaluate on where there are no validation files."""
        return 0.05 if self.validation_split is None else self.validation_split

    def evaluated_on(self, files: Sequence[str], folder: Path, class_names: Sequence[str]) -> SourceSpec:
        """As `DataSection.evaluated_on`: with other files, no sample of the training text is needed."""
        found: dict[str, Any] = {"tokenizer_file": str(folder / "tokenizer.json")}
        if files:
            found |= {"corpus": None, "files": tuple(files), "validation_files": (), "validation_split": 0.0}
        if "class_names" in type(self).model_fields:
            found["class_names"] = tuple(class_names)
        return self.model_copy(update=found)

    @model_validator(mode="after")
    def _one_source(self) -> SourceSpec:
        if (self.corpus is None) == (not self.files):
            raise ValueError(
                "give either corpus: python-docs or files: [paths and globs of "
                f"{', '.join(self.suffixes)}], not both and not neither"
            )
        if self.validation_files and self.validation_split:
            raise ValueError(
                "validation_files are what is evaluated on, and validation_split would take samples out of "
                "training as well: give one of them"
            )
        return self


class TextSpec(SourceSpec):
    """Text that becomes sequences of one length."""

    packing: bool = True

    @property
    def suffixes(self) -> tuple[str, ...]:
        """As `SourceSpec.suffixes`: also plain text."""
        return (".txt", *SUFFIXES)

    @property
    def scheme(self) -> Scheme:
        """How this text becomes sequences; each task's section says it."""
        raise NotImplementedError
