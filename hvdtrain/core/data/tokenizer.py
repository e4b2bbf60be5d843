"""The WordPiece tokenizer: trained on the corpus, or a given Hugging Face `tokenizer.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hvdtrain.core.data.alphabet import MAX_WORD_CHARS, survey
from hvdtrain.core.data.lines import file_digest, unreadable
from hvdtrain.core.data.sources import MAX_DOCUMENT_CHARS, pieces
from hvdtrain.core.data.special_tokens import (
    SPECIAL_TOKENS,
    find_special_tokens,
    tokenizer_size,
    unknown_token,
)
from hvdtrain.core.data.text import TokenIds
from hvdtrain.core.data.tokenizer_files import bert_options
from hvdtrain.core.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NEEDED = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
# The library takes about 150 bytes a character of what it is given at once, and holds 256 texts in training.
_BATCH_CHARS = 1 << 18
PIECE_CHARS = 1 << 16


def train_tokenizer(
    documents: Callable[[], Iterable[str]],
    vocab_size: int,
    lowercase: bool = True,
    strip_accents: bool = False,
) -> Tokenizer:
    """Train a BERT WordPiece tokenizer; the same documents always give the same tokenizer.

    Its characters are the most frequent ones of the documents: 1,000 of them or a quarter of the vocabulary,
    whichever is less, and more until they make up 99.95 % of the text (`character_coverage` of Kudo &
    Richardson 2018, SentencePiece). Places that longer pieces leave free go to the characters after those.

    The `tokenizers` library numbers the `##x` pieces in the order of a randomly seeded hash map and breaks
    ties between merges by those numbers, so two runs of it differ (huggingface/tokenizers issue 1794). Here
    these pieces are handed to it sorted, as if they were special tokens, which fixes their numbers;
    afterwards they are ordinary again.

    Args:
        documents: gives the documents from the start at each call (called twice).
        vocab_size: upper bound of the number of tokens.
        lowercase: Hugging Face's `do_lower_case`.
        strip_accents: whether combining marks are taken away: accents, vowel signs and voicing marks alike.

    Returns:
        A `tokenizers.Tokenizer` that adds [CLS] and [SEP]; [PAD], [UNK], [CLS], [SEP], [MASK] are ids 0 to 4.
    """
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import WordPiece

    draft = _bert(Tokenizer(WordPiece(unk_token="[UNK]")), lowercase, strip_accents)
    found = survey(draft, documents())
    if found.has_long_words:
        _cut_long_words(draft)
    alphabet, rare = found.choose(vocab_size - len(SPECIAL_TOKENS))
    continuations = [token for character in alphabet for token in found.tokens(character)[1:]]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    draft.train_from_iterator((part for text in documents() for part in pieces(text, PIECE_CHARS)), trainer)
    vocabulary = draft.get_vocab()
    for character in rare:
        new = [token for token in found.tokens(character) if token not in vocabulary]
        if len(vocabulary) + len(new) > vocab_size:
            break
        vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(new)}
    tokenizer = _bert(Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")), lowercase, strip_accents)
    if found.has_long_words:
        _cut_long_words(tokenizer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def frame_with(tokenizer: Tokenizer, cls: int, sep: int) -> None:
    """Have a tokenizer add [CLS] and [SEP] as BERT's does: the second of two texts is segment 1.

    Args:
        tokenizer: has both tokens.
        cls: id of [CLS].
        sep: id of [SEP].
    """
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )


def read_tokenizer(path: Path) -> bytes:
    """The bytes of a `tokenizer.json`; DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, "data.tokenizer_file: ") from None


def tokenizer_key(content: bytes, beside: Mapping[str, str]) -> str:
    """What differs between given tokenizers; part of the name of a cache.

    Args:
        content: the bytes of a `tokenizer.json`.
        beside: from `named_beside`.
    """
    return " ".join([file_digest(content).hexdigest(), *map("=".join, sorted(beside.items()))])


def tokenizer_from(content: bytes, path: str | Path, field: str = "data.tokenizer_file: ") -> Tokenizer:
    """A tokenizer from the bytes of a `tokenizer.json`; DataError, with its path, when it is not one.

    Args:
        content: the bytes.
        path: where they are from, for the error.
        field: what the error starts with.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception for whatever its parser finds
        raise DataError(f"{field}{path} is not a Hugging Face tokenizer.json: {error}") from None


def token_ids(
    tokenizer: Tokenizer, vocab_size: int, where: str, beside: Mapping[str, str] | None = None
) -> TokenIds:
    """The ids that masked-LM training needs.

    Args:
        tokenizer: trained or loaded.
        vocab_size: the model's, `model.vocab_size`.
        where: what to call the tokenizer in an error.
        beside: from `named_beside`; None: nothing.

    Raises:
        DataError: the tokenizer has more tokens than the model, or lacks a special one.
    """
    found = find_special_tokens(tokenizer, beside or {}, [*_NEEDED], where)
    missing = [role for role in _NEEDED if role not in found]
    if missing:
        raise DataError(
            f"{where} lacks {', '.join(map(_NEEDED.__getitem__, missing))}; masked-LM training needs "
            f"{', '.join(_NEEDED.values())}, or tokens that a tokenizer_config.json beside it names as "
            f"{', '.join(f'{role}_token' for role in missing)}"
        )
    size = tokenizer_size(tokenizer, vocab_size, where)
    special = {*found.values()}
    unknown = unknown_id(tokenizer)
    if unknown is not None:
        special.add(unknown)
    special.update(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    return TokenIds(size, **found, special=tuple(sorted(special)))


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of what stands for text that the tokenizer does not know; None where it knows all text."""
    name = unknown_token(json.loads(tokenizer.to_str())["model"]) or "[UNK]"
    found: int | None = tokenizer.token_to_id(name)
    return found


def encoder(
    tokenizer: Tokenizer, where: str = "the tokenizer"
) -> Callable[[Iterable[str]], Iterator[list[int]]]:
    """A function from documents to token ids, without added tokens, cuts or padding.

    A document that happens to contain the text "[SEP]" gets the tokens of that text, not the special token.

    Args:
        tokenizer: trained or loaded.
        where: what to call the tokenizer in an error: it may lack a token for what it does not know.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    # BERT's words end at white space, so a text that is cut there has the same tokens.
    is_bert = bert_options(json.loads(tokenizer.to_str())) is not None
    most = PIECE_CHARS if is_bert else MAX_DOCUMENT_CHARS

    def encode(documents: Iterable[str]) -> Iterator[list[int]]:
        ids: list[int] = []
        for batch in _batches(documents, most):
            try:
                found = tokenizer.encode_batch_fast([part for part, _ in batch], add_special_tokens=False)
            except Exception as error:  # the library raises plain Exception for whatever its model finds
                raise DataError(f"{where} cannot make tokens of the text: {error}") from None
            for (_, is_last), encoding in zip(batch, found, strict=True):
                ids += encoding.ids
                if is_last:
                    yield ids
                    ids = []

    return encode


def _batches(documents: Iterable[str], most: int) -> Iterator[list[tuple[str, bool]]]:
    """Parts of documents, each with whether it ends its own, enough at a time for the library's threads."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        *parts, last = pieces(document, most)
        for part, is_last in [*((part, False) for part in parts), (last, True)]:
            batch.append((part, is_last))
            size += len(part)
            if size >= _BATCH_CHARS:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _bert(tokenizer: Tokenizer, lowercase: bool, strip_accents: bool) -> Tokenizer:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    frame_with(tokenizer, SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]"))
    return tokenizer


def _cut_long_words(tokenizer: Tokenizer) -> None:
    """Have words cut that WordPiece would give up on."""
    from tokenizers import Regex, pre_tokenizers

    cut = pre_tokenizers.Split(Regex(f".{{{MAX_WORD_CHARS}}}"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([tokenizer.pre_tokenizer, cut])
