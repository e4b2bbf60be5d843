"""Sequences of WordPiece tokens between [CLS] and [SEP]."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvdtrain.core.data.packing import Tokens, pack, split
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.data.tokenizer import token_ids, train_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class WordPieceScheme:
    """BERT's.

    Attributes:
        lowercase: Hugging Face's `do_lower_case`.
        strip_accents: whether combining marks are taken away.
    """

    lowercase: bool
    strip_accents: bool

    @property
    def key(self) -> str:
        """What differs between tokenizers trained on the same text."""
        return f"wordpiece {self.lowercase} {self.strip_accents}"

    def train(self, documents: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
        """As `Scheme.train`."""
        return train_tokenizer(documents, vocab_size, self.lowercase, self.strip_accents)

    def token_ids(
        self, tokenizer: Tokenizer, vocab_size: int, where: str, beside: Mapping[str, str] | None = None
    ) -> TokenIds:
        """As `Scheme.token_ids`."""
        return token_ids(tokenizer, vocab_size, where, beside)

    def sequences(
        self, documents: Iterable[list[int]], length: int, packing: bool, ids: TokenIds
    ) -> Iterator[Tokens]:
        """As `Scheme.sequences`."""
        return (pack if packing else split)(documents, length, ids.cls, ids.sep)
