"""GPT-2's tokens: byte-level BPE (Radford et al. 2019), and one special token, which ends a document."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hvdtrain.core.data.packing import Tokens
from hvdtrain.core.data.sources import pieces
from hvdtrain.core.data.special_tokens import (
    END_OF_TEXT,
    begins_a_text,
    find_special_tokens,
    tokenizer_size,
    unknown_token,
)
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.data.tokenizer import PIECE_CHARS
from hvdtrain.core.data.tokenizer_files import tokens_by_id
from hvdtrain.core.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# One for each byte, and the special one.
SMALLEST = 257


@dataclass(frozen=True)
class ByteLevelBPE:
    """Documents joined by their ends, and cut into blocks."""

    @property
    def key(self) -> str:
        """What differs between tokenizers trained on the same text."""
        return "byte-level bpe"

    def train(self, documents: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
        """As `Scheme.train`; there is no unknown text, since every byte is a token.

        Raises:
            DataError: the vocabulary is too small for the bytes.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocab_size < SMALLEST:
            raise DataError(
                f"model.vocab_size {vocab_size} is too small: every byte is a token, so give {SMALLEST} "
                "or more"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        texts = (part for text in documents() for part in pieces(text, PIECE_CHARS))
        tokenizer.train_from_iterator(texts, trainer)
        return tokenizer

    def token_ids(
        self, tokenizer: Tokenizer, vocab_size: int, where: str, beside: Mapping[str, str] | None = None
    ) -> TokenIds:
        """As `Scheme.token_ids`; the token that ends a document stands for padding and all else.

        `cls` is another one where the tokenizer's own post-processor puts one before a text.
        """
        end = find_special_tokens(tokenizer, beside or {}, ["eos"], where).get("eos")
        if end is None:
            raise DataError(
                f"{where} lacks {END_OF_TEXT}, which causal_lm puts behind each document, or another token "
                "that a tokenizer_config.json beside it names as eos_token"
            )
        start = None if end == tokenizer.token_to_id(END_OF_TEXT) else begins_a_text(tokenizer)
        start = end if start is None else start
        size = tokenizer_size(tokenizer, vocab_size, where)
        return TokenIds(size, end, start, end, end, tuple(sorted({start, end})))

    def sequences(
        self, documents: Iterable[list[int]], length: int, packing: bool, ids: TokenIds
    ) -> Iterator[Tokens]:
        """As `Scheme.sequences`; a sequence has at least two tokens, for one predicts the next.

        With `packing` only the last is shorter than `length`; else each document starts a sequence.
        """
        rest: list[int] = []
        for document in documents:
            if not document:
                continue
            rest += [*document, ids.sep] if ids.cls == ids.sep else [ids.cls, *document, ids.sep]
            full = len(rest) - len(rest) % length
            for start in range(0, full, length):
                yield np.array(rest[start : start + length], dtype=np.int64)
            del rest[:full]
            if not packing:
                yield from _last(rest)
                rest = []
        yield from _last(rest)


def _last(rest: list[int]) -> Iterator[Tokens]:
    if len(rest) > 1:
        yield np.array(rest, dtype=np.int64)


def bpe_files(tokenizer: str, model_max_length: int, ids: TokenIds) -> dict[str, str]:
    """The files of a tokenizer by name: Transformers', and `vocab.json` and `merges.txt`, for KerasHub.

    Args:
        tokenizer: the content of `tokenizer.json`.
        model_max_length: longest sequence in tokens.
        ids: of the tokenizer.
    """
    found = json.loads(tokenizer)
    model, tokens = found["model"], tokens_by_id(found)
    end = tokens[ids.sep]
    names = {"bos": tokens[ids.cls], "eos": end, "unk": unknown_token(model) or end, "pad": end}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        **{f"{kind}_token": name for kind, name in names.items()},
    }
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": json.dumps(config, indent=2) + "\n"}
    if model.get("type") != "BPE":
        return files
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    vocabulary = {token: number for number, token in tokens.items()}
    return files | {
        "vocab.json": json.dumps(vocabulary, ensure_ascii=False) + "\n",
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
    }
