"""The tokenizer of a data section: the one that it names, or one that is trained on its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from hvdtrain.core.data.special_tokens import named_beside
from hvdtrain.core.data.text import Scheme
from hvdtrain.core.data.tokenizer import read_tokenizer, tokenizer_from, tokenizer_key
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import user_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class _Section(Protocol):
    @property
    def tokenizer_file(self) -> str | None: ...

    @property
    def scheme(self) -> Scheme: ...


def given_tokenizer(data: _Section) -> tuple[bytes | None, Mapping[str, str], str]:
    """What `data.tokenizer_file` holds.

    Args:
        data: the spec's data section.

    Returns:
        Its bytes, or None where a tokenizer is trained; the special tokens that are named beside it; and what
        differs between such tokenizers, a part of the name of a cache.

    Raises:
        DataError: it cannot be read.
    """
    if not data.tokenizer_file:
        return None, {}, data.scheme.key
    path = user_path(data.tokenizer_file, "data.tokenizer_file:", DataError)
    content, beside = read_tokenizer(path), named_beside(path)
    return content, beside, tokenizer_key(content, beside)


def open_tokenizer(
    data: _Section, content: bytes | None, texts: Callable[[], Iterable[str]], vocab_size: int
) -> tuple[Tokenizer, str]:
    """The tokenizer, and what to call it in an error.

    Args:
        data: the spec's data section.
        content: from `given_tokenizer`.
        texts: gives the texts to train on from the start at each call.
        vocab_size: the model's.

    Raises:
        DataError: it is no tokenizer.
    """
    if content is None:
        tokenizer = data.scheme.train(texts, vocab_size)
        return tokenizer, f"the tokenizer trained for model.vocab_size {vocab_size}"
    return tokenizer_from(content, f"{data.tokenizer_file}"), f"data.tokenizer_file {data.tokenizer_file}"
