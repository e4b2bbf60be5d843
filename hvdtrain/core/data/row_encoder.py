"""From rows of one text or two to tokens, with those that a tokenizer adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hvdtrain.core.data.labelled_text import Row
from hvdtrain.core.data.sources import MAX_DOCUMENT_CHARS
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.data.tokenizer import frame_with
from hvdtrain.core.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH_CHARS = 1 << 18


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """A row as tokens.

    Attributes:
        row: what it was.
        tokens: int32 (length,).
        second_start: where the tokens of segment 1 begin; the length where there are none.
    """

    row: Row
    tokens: NDArray[np.int32]
    second_start: int


def row_encoder(
    tokenizer: Tokenizer, ids: TokenIds, max_seq_length: int, where: str
) -> Callable[[Iterable[Row]], Iterator[EncodedRow]]:
    """A function from rows to tokens.

    Tokens and segments are those of the tokenizer's own post-processor; one that adds no token gets BERT's,
    [CLS] a [SEP] and [CLS] a [SEP] b [SEP]. A row that is too long loses tokens at the end of its longer text
    (Transformers' `longest_first`). A text that happens to contain "[SEP]" gets the tokens of that text, not
    the special token.

    Args:
        tokenizer: changed by the call.
        ids: of the tokenizer.
        max_seq_length: tokens of the longest row.
        where: what to call the tokenizer in an error.
    """
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if tokenizer.num_special_tokens_to_add(is_pair=False) == 0:
        frame_with(tokenizer, ids.cls, ids.sep)
    tokenizer.enable_truncation(max_seq_length, strategy="longest_first")

    def encode(rows: Iterable[Row]) -> Iterator[EncodedRow]:
        for batch in _batches(rows):
            texts = [
                _cut(row.text) if row.pair is None else (_cut(row.text), _cut(row.pair)) for row in batch
            ]
            try:
                found = tokenizer.encode_batch(texts)
            except Exception as error:  # the library raises plain Exception for whatever its model finds
                raise DataError(f"{where} cannot make tokens of the text: {error}") from None
            for row, encoding in zip(batch, found, strict=True):
                segments = np.array(encoding.type_ids, np.int32)
                start = int(np.count_nonzero(segments == 0))
                if (segments != (np.arange(len(segments)) >= start)).any():
                    raise DataError(
                        f"{where}: its post-processor gives {row.where} the segments {segments.tolist()}; "
                        "expected 0 for the tokens of the first text, then 1 for those of the second"
                    )
                yield EncodedRow(row, np.array(encoding.ids, np.int32), start)

    return encode


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows enough at a time for the library's threads, and not too many for memory."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += len(row.text) + len(row.pair or "")
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _cut(text: str) -> str:
    # More would be cut off behind the tokenizer, which takes 150 bytes a character.
    return text[:MAX_DOCUMENT_CHARS]
