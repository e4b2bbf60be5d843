"""The WordPiece tokenizer: trained on the corpus, or a given Hugging Face `tokenizer.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hvdtrain.core.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_NEEDED = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
_MAX_ALPHABET = 1000


@dataclass(frozen=True)
class TokenIds:
    """What training needs of a tokenizer: `size` is its highest id plus 1, `special` all ids never masked."""

    size: int
    pad: int
    cls: int
    sep: int
    mask: int
    special: tuple[int, ...]


def train_tokenizer(documents: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
    """Train a lower-case BERT WordPiece tokenizer; the same documents always give the same tokenizer.

    The `tokenizers` library numbers the `##x` pieces in the order of a randomly seeded hash map and breaks
    ties between merges by those numbers, so two runs of it differ (huggingface/tokenizers issue 1794). Here
    these pieces are handed to it sorted, as if they were special tokens, which fixes their numbers;
    afterwards they are ordinary again.

    Args:
        documents: gives the documents from the start at each call (called twice).
        vocab_size: upper bound of the number of tokens.

    Returns:
        A `tokenizers.Tokenizer` that adds [CLS] and [SEP]; [PAD], [UNK], [CLS], [SEP], [MASK] are ids 0 to 4.
    """
    from tokenizers import Tokenizer, trainers
    from tokenizers.models import WordPiece

    draft = _bert(Tokenizer(WordPiece(unk_token="[UNK]")))
    alphabet, continuations = _alphabet(draft, documents(), (vocab_size - len(SPECIAL_TOKENS)) // 4)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *continuations],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    draft.train_from_iterator(documents(), trainer)
    tokenizer = _bert(Tokenizer(WordPiece(draft.get_vocab(), unk_token="[UNK]")))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a Hugging Face `tokenizer.json`; DataError when it cannot be read or is not one."""
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.tokenizer_file: {path} cannot be read: {error}") from None
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception for whatever its parser finds
        raise DataError(
            f"data.tokenizer_file: {path} is not a Hugging Face tokenizer.json: {error}"
        ) from None


def token_ids(tokenizer: Tokenizer, vocab_size: int, where: str) -> TokenIds:
    """The ids that training needs.

    Args:
        tokenizer: trained or loaded.
        vocab_size: the model's, `model.vocab_size`.
        where: what to call the tokenizer in an error.

    Raises:
        DataError: the tokenizer has more tokens than the model, or lacks [PAD], [CLS], [SEP] or [MASK].
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    missing = [token for token in _NEEDED if token not in vocabulary]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; masked-LM training needs {', '.join(_NEEDED)}")
    size = max(vocabulary.values()) + 1
    if size > vocab_size:
        raise DataError(
            f"{where} has {size} tokens, model.vocab_size is {vocab_size}: set model.vocab_size: {size}"
        )
    special = {vocabulary[token] for token in SPECIAL_TOKENS if token in vocabulary}
    special.update(i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special)
    pad, cls, sep, mask = (vocabulary[token] for token in _NEEDED)
    return TokenIds(size, pad, cls, sep, mask, tuple(sorted(special)))


def encoder(tokenizer: Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    """A function from documents to token ids, without added tokens, cuts or padding.

    A document that happens to contain the text "[SEP]" gets the tokens of that text, not the special token.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True

    def encode(documents: list[str]) -> list[list[int]]:
        return [found.ids for found in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]

    return encode


def _bert(tokenizer: Tokenizer) -> Tokenizer:
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    cls, sep = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return tokenizer


def _alphabet(tokenizer: Tokenizer, documents: Iterable[str], limit: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, sorted, and the `##x` pieces of those that can stand inside a word."""
    raw: Counter[str] = Counter()
    for document in documents:
        raw.update(document)
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in tokenizer.normalizer.normalize_str(character):
            counts[normal] += count
    visible = [character for character in counts if not character.isspace()]
    visible.sort(key=lambda character: (-counts[character], character))
    alphabet = sorted(visible[: max(1, min(limit, _MAX_ALPHABET))])
    return alphabet, [f"##{character}" for character in alphabet if _joins_words(tokenizer, character)]


def _joins_words(tokenizer: Tokenizer, character: str) -> bool:
    normal = tokenizer.normalizer.normalize_str("a" + character)
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(normal)) == 1
