"""What a tokenizer is trained from: the characters of a corpus, and whether it has long words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# WordPiece gives up on longer words; Hugging Face's default.
MAX_WORD_CHARS = 100
_COVERAGE = 0.9995
_ALWAYS = 1000
# A superset of the words above MAX_WORD_CHARS: lower-casing makes two characters of one at most, and BERT
# also ends a word at other punctuation and at rarer Chinese characters.
_LONG_RUN = re.compile(rf"[^\s!-/:-@\[-`{{-~\u3400-\u4dbf\u4e00-\u9fff]{{{MAX_WORD_CHARS // 2 + 1},}}")


@dataclass(frozen=True)
class Survey:
    """The visible characters of a corpus, and how it uses them.

    Attributes:
        counts: how often each occurs, normalized.
        has_long_words: whether a word is longer than `MAX_WORD_CHARS`.
        joining: those that can stand inside a word, and so need a token `##c` beside the token `c`.
    """

    counts: dict[str, int]
    has_long_words: bool
    joining: frozenset[str]

    def tokens(self, character: str) -> list[str]:
        """The tokens that make a character known wherever it stands."""
        return [character, f"##{character}"] if character in self.joining else [character]

    def choose(self, places: int) -> tuple[list[str], list[str]]:
        """The characters that a tokenizer starts from.

        Args:
            places: tokens of the vocabulary, without the special ones.

        Returns:
            The most frequent characters, sorted: 1,000 of them or as many as a quarter of the places,
            whichever is less, and more until they make up 99.95 % of the text; then those left out, the most
            frequent first.
        """
        ranked = sorted(self.counts, key=lambda character: (-self.counts[character], character))
        enough, most = _COVERAGE * sum(self.counts.values()), min(_ALWAYS, places // 4)
        number, covered = 0, 0
        for character in ranked:
            places -= len(self.tokens(character))
            if places < 0 or (number >= most and covered >= enough):
                break
            number, covered = number + 1, covered + self.counts[character]
        return sorted(ranked[:number]), ranked[number:]


def survey(tokenizer: Tokenizer, documents: Iterable[str]) -> Survey:
    """Count characters and look for long words.

    Args:
        tokenizer: its normalizer and pre-tokenizer are used.
        documents: the corpus.
    """
    raw: Counter[str] = Counter()
    has_long_words = False
    for document in documents:
        raw.update(document)
        has_long_words = has_long_words or any(_long_words(tokenizer, document))
    counts: Counter[str] = Counter()
    for character, count in raw.items():
        for normal in tokenizer.normalizer.normalize_str(character):
            if not normal.isspace():
                counts[normal] += count
    joining = frozenset(character for character in counts if _joins_words(tokenizer, character))
    return Survey(dict(counts), has_long_words, joining)


def _long_words(tokenizer: Tokenizer, document: str) -> Iterator[bool]:
    for run in _LONG_RUN.findall(document):
        normal = tokenizer.normalizer.normalize_str(run)
        words = tokenizer.pre_tokenizer.pre_tokenize_str(normal)
        yield any(end - start > MAX_WORD_CHARS for _, (start, end) in words)


def _joins_words(tokenizer: Tokenizer, character: str) -> bool:
    normal = tokenizer.normalizer.normalize_str("a" + character)
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(normal)) == 1
