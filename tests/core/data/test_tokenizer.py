"""WordPiece: the same tokenizer wherever it is trained, and clear words when a given one does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import pydoc_data.topics
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from hvdtrain.core.data.special_tokens import SPECIAL_TOKENS
from hvdtrain.core.data.tokenizer import (
    encoder,
    read_tokenizer,
    token_ids,
    tokenizer_from,
    train_tokenizer,
    unknown_id,
)
from hvdtrain.core.errors import DataError

# Characters and counts with many ties, which is where a hash map's order would show.
TEXTS = [
    "the cat sat on the mat, naïve façade",
    "Mat cat hat bat rat sat",
    "中文 字 and ελληνικά ελλην",
    "xyz xyz qrs qrs",
]
TRAIN = """
import hashlib, sys, json
from hvdtrain.core.data.tokenizer import train_tokenizer
texts = json.loads(sys.argv[1])
print(hashlib.sha256(train_tokenizer(lambda: texts, int(sys.argv[2])).to_str().encode()).hexdigest())
"""


def digest(vocab_size: int, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", TRAIN, json.dumps(TEXTS), str(vocab_size)]
    return subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_training_is_the_same_in_every_process_and_with_any_threads() -> None:
    here = hashlib.sha256(train_tokenizer(lambda: TEXTS, 100).to_str().encode()).hexdigest()
    settings = [{"TOKENIZERS_PARALLELISM": "false"}, {"RAYON_NUM_THREADS": "5"}, {"PYTHONHASHSEED": "3"}, {}]
    assert {digest(100, setting) for setting in settings} == {here}


def test_special_tokens_come_first_and_text_round_trips() -> None:
    tokenizer = train_tokenizer(lambda: TEXTS, 200)
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3, 4]
    assert tokenizer.decode(tokenizer.encode("The Naïve CAT 中").ids) == "the naïve cat 中"
    assert tokenizer.encode("cat", "mat").tokens == ["[CLS]", "cat", "[SEP]", "mat", "[SEP]"]


def test_pieces_that_cannot_occur_take_no_place() -> None:
    vocabulary = train_tokenizer(lambda: TEXTS, 200).get_vocab()
    assert "##a" in vocabulary
    assert "中" in vocabulary
    assert "##中" not in vocabulary
    assert "##," not in vocabulary


@pytest.mark.parametrize("vocab_size", [16, 40, 100])
def test_small_vocabulary_is_respected(vocab_size: int) -> None:
    tokenizer = train_tokenizer(lambda: TEXTS, vocab_size)
    assert token_ids(tokenizer, vocab_size, "it").size <= vocab_size


def test_text_that_looks_like_a_special_token_is_text() -> None:
    tokenizer = train_tokenizer(lambda: TEXTS, 200)
    [ids] = list(encoder(tokenizer)(["cat [SEP] [MASK] cat"]))
    assert not {tokenizer.token_to_id("[SEP]"), tokenizer.token_to_id("[MASK]")} & set(ids)


def test_trained_tokenizer_loads_again(tmp_path: Path) -> None:
    trained = train_tokenizer(lambda: TEXTS, 200)
    (tmp_path / "tokenizer.json").write_text(trained.to_str())
    loaded = tokenizer_from(read_tokenizer(tmp_path / "tokenizer.json"), "tokenizer.json")
    assert loaded.encode("The cat, naïve").ids == trained.encode("The cat, naïve").ids
    assert token_ids(loaded, 200, "it") == token_ids(trained, 200, "it")


def unknown_share(texts: list[str], vocab_size: int) -> float:
    tokenizer = train_tokenizer(lambda: texts, vocab_size)
    ids = [i for found in encoder(tokenizer)(texts) for i in found]
    return ids.count(unknown_id(tokenizer)) / len(ids)


def chinese(characters: int, seed: int = 0) -> list[str]:
    """Every one of so many characters twice and more, those of a low number most often."""
    random = np.random.default_rng(seed)
    often = np.minimum(random.zipf(1.3, 20 * characters), characters) - 1
    numbers = random.permutation(np.concatenate([often, np.tile(np.arange(characters), 2)]))
    text = "".join(chr(0x4E00 + number) for number in numbers)
    return [text[start : start + 500] for start in range(0, len(text), 500)]


def test_no_character_is_unknown_where_the_vocabulary_has_room_for_all() -> None:
    assert unknown_share(chinese(5000), 21128) == 0.0
    # English leaves no place for the merges of Chinese, but the Chinese has none.
    assert unknown_share([*chinese(2000), *pydoc_data.topics.topics.values()], 8000) == 0.0


def test_characters_come_before_longer_pieces_until_nearly_all_text_is_known() -> None:
    assert unknown_share(chinese(5000), 4000) < 0.02
    # Of Korean each character is a token alone and one inside a word.
    hangul = [" ".join(chr(0xAC00 + i) + chr(0xAC00 + 3 * i % 3000) for i in range(3000))] * 2
    assert unknown_share(hangul, 6010) < 0.001
    # A quarter of the vocabulary would be 30 of some 90 characters.
    assert unknown_share(list(pydoc_data.topics.topics.values()), 125) < 0.01
    assert unknown_share(list(pydoc_data.topics.topics.values()), 16) > 0.5


HINDI = "हिन्दी में मात्राएँ शब्दों का हिस्सा हैं।"
JAPANESE = "がぎぐげご は かきくけこ と ちがう パピプペポ ハヒフヘホ"
ACCENTS = "Café naïve Ünïcode Škoda Ελληνικά ёлка"


@pytest.mark.parametrize("text", [HINDI, JAPANESE, ACCENTS])
def test_marks_are_kept_unless_told(text: str) -> None:
    tokenizer = train_tokenizer(lambda: [text] * 3, 400)
    assert tokenizer.decode(tokenizer.encode(text).ids).replace(" ", "") == text.lower().replace(" ", "")
    stripped = train_tokenizer(lambda: [text] * 3, 400, strip_accents=True)
    bare = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    assert stripped.decode(stripped.encode(text).ids).replace(" ", "") == bare.replace(" ", "")
    assert bare != text.lower()


def test_capitals_are_kept_when_told() -> None:
    tokenizer = train_tokenizer(lambda: TEXTS, 200, lowercase=False)
    assert tokenizer.decode(tokenizer.encode("Mat cat").ids) == "Mat cat"


@pytest.mark.parametrize("length", [100, 101, 1000])
def test_long_words_are_known(length: int) -> None:
    words = ["ab" * (length // 2) + "a" * (length % 2), "ก" * length, "x" * (length - 1) + "İ"]
    texts = [f"a b ก {word} c" for word in words]
    assert unknown_share(texts, 200) == 0.0
    # One that the training did not see has the same chance where any was seen.
    assert ("Split" in train_tokenizer(lambda: texts, 200).to_str()) == (length > 99)


def test_a_corpus_without_long_words_gets_the_tokenizer_of_bert() -> None:
    found = json.loads(train_tokenizer(lambda: TEXTS, 200).to_str())
    assert found["pre_tokenizer"] == {"type": "BertPreTokenizer"}


@given(
    st.text(st.sampled_from("ab Ä,中 \n\t\x1f\u3000\u00adก"), max_size=80),
    st.integers(4, 20),
)
def test_a_document_that_is_cut_for_memory_has_the_tokens_of_the_whole(text: str, most: int) -> None:
    tokenizer = train_tokenizer(lambda: ["ab ba aab Ä,中 ก ab aab"] * 2, 40)
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hvdtrain.core.data.tokenizer.PIECE_CHARS", most)
        patch.setattr("hvdtrain.core.data.tokenizer._BATCH_CHARS", 2 * most)
        cut = list(encoder(tokenizer)([text, "ab", text]))
    # Only words that are longer than a part come apart.
    if all(len(word) < most for word in re.split("[ \n\r\t]", text)):
        assert cut == [whole, tokenizer.encode("ab", add_special_tokens=False).ids, whole]
    assert len(cut) == 3


def test_given_tokenizer_larger_than_the_model_is_refused() -> None:
    tokenizer = train_tokenizer(lambda: TEXTS, 200)
    size = tokenizer.get_vocab_size()
    with pytest.raises(
        DataError, match=rf"it has {size} tokens, model\.vocab_size is 50: set model\.vocab_size: {size}"
    ):
        token_ids(tokenizer, 50, "it")


def test_given_tokenizer_without_the_needed_tokens_is_refused() -> None:
    tokenizer = Tokenizer(WordPiece({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"it lacks \[PAD\], \[MASK\]; masked-LM training needs"):
        token_ids(tokenizer, 50, "it")


def test_given_tokenizer_that_cannot_say_unknown_is_refused() -> None:
    tokenizer = Tokenizer(WordPiece({"[PAD]": 0, "[CLS]": 1, "a": 2}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"it cannot make tokens of the text: .*\[UNK\]"):
        list(encoder(tokenizer, "it")(["b"]))


def test_gaps_in_the_ids_count_as_tokens() -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 90}
    ids = token_ids(Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")), 100, "it")
    assert (ids.size, ids.special) == (91, (0, 1, 2, 3, 90))


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff"])
def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"data\.tokenizer_file: .*tokenizer\.json"):
        tokenizer_from(content, tmp_path / "tokenizer.json")
