"""WordPiece: the same tokenizer wherever it is trained, and clear words when a given one does not fit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from hvdtrain.core.data.tokenizer import (
    SPECIAL_TOKENS,
    encoder,
    load_tokenizer,
    token_ids,
    train_tokenizer,
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
    assert tokenizer.decode(tokenizer.encode("The naive CAT 中").ids) == "the naive cat 中"
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
    [ids] = encoder(tokenizer)(["cat [SEP] [MASK] cat"])
    assert not {tokenizer.token_to_id("[SEP]"), tokenizer.token_to_id("[MASK]")} & set(ids)


def test_trained_tokenizer_loads_again(tmp_path: Path) -> None:
    trained = train_tokenizer(lambda: TEXTS, 200)
    (tmp_path / "tokenizer.json").write_text(trained.to_str())
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.encode("The cat, naïve").ids == trained.encode("The cat, naïve").ids
    assert token_ids(loaded, 200, "it") == token_ids(trained, 200, "it")


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


def test_gaps_in_the_ids_count_as_tokens() -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 90}
    ids = token_ids(Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")), 100, "it")
    assert (ids.size, ids.special) == (91, (0, 1, 2, 3, 90))


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff"])
def test_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.tokenizer_file: .*tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
