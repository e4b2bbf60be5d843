"""What the cache holds: the whole corpus, cut into sequences and split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from hvdtrain.core.data import prepare
from hvdtrain.core.data.tokenizer import train_tokenizer
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec
from tests.core.data.corpora import TEXT, VOCAB, contents, same, spec


def test_sequences_hold_the_whole_corpus(corpus: Path) -> None:
    data = prepare(spec(corpus, validation_split=0.0), VOCAB, 0)
    tokenizer = Tokenizer.from_file(str(data.tokenizer_path))
    inside = [token for sequence in contents(data.train) for token in sequence[1:-1]]
    paragraphs = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXT.split("\n\n")]
    joined = [token for ids in paragraphs for token in [data.token_ids.sep, *ids]][1:]
    assert inside == joined
    assert data.train.lengths.tolist() == [len(sequence) for sequence in contents(data.train)]
    assert data.token_ids.size == tokenizer.get_vocab_size() <= VOCAB
    assert len(data.validation) == 0


def test_without_packing_each_paragraph_stands_alone(corpus: Path) -> None:
    data = prepare(spec(corpus, packing=False, validation_split=0.0), VOCAB, 0)
    tokenizer = Tokenizer.from_file(str(data.tokenizer_path))
    expected = sum(
        -(-len(tokenizer.encode(text, add_special_tokens=False).ids) // 14) for text in TEXT.split("\n\n")
    )
    assert len(data.train) == expected
    assert len(set(data.train.lengths.tolist())) > 5


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5])
def test_split_is_disjoint_complete_and_stable(corpus: Path, fraction: float) -> None:
    data = prepare(spec(corpus, validation_split=fraction), VOCAB, 3)
    train, validation = data.train.members.tolist(), data.validation.members.tolist()
    count = len(train) + len(validation)
    assert sorted(train + validation) == list(range(count))
    assert len(validation) == max(1, round(fraction * count))
    assert same(data, prepare(spec(corpus, validation_split=fraction), VOCAB, 3))
    other = prepare(spec(corpus, validation_split=fraction), VOCAB, 4)
    assert other.validation.members.tolist() != validation
    assert other.fingerprint != data.fingerprint


def test_too_little_text_to_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word")
    with pytest.raises(
        DataError, match=r"the corpus gives 1 sequence, too few for data\.validation_split 0\.05"
    ):
        prepare(spec(tmp_path / "a.txt"), VOCAB, 0)


@pytest.mark.parametrize("text", ["", " \n\n\t\n"])
def test_empty_corpus_is_refused_and_leaves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=r"data\.files .*a\.txt: no text found"):
        prepare(spec(tmp_path / "a.txt"), VOCAB, 0)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock", ".json"}


def test_large_vocabulary_keeps_its_ids(corpus: Path) -> None:
    given = corpus.parent / "given.json"
    tokenizer = json.loads(train_tokenizer(lambda: [TEXT], 200).to_str())
    tokenizer["model"]["vocab"]["paragraph"] = 70_000
    given.write_text(json.dumps(tokenizer))
    data = prepare(spec(corpus, tokenizer_file=str(given)), 80_000, 0)
    assert max(max(sequence) for sequence in contents(data.train)) == 70_000


def test_unknown_words_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aa bb aa cc\n\naa dd " * 50)
    given = tmp_path / "given.json"
    made = train_tokenizer(lambda: ["aa"] * 3, 10)
    given.write_text(made.to_str())
    for packing in (True, False):
        data = prepare(spec(tmp_path / "a.txt", tokenizer_file=str(given), packing=packing), VOCAB, 0)
        assert data.unknown_share == 0.5
        assert data.token_ids.size == made.get_vocab_size()


@pytest.mark.parametrize("packing", [True, False])
def test_corpus_with_nothing_to_predict_is_refused(tmp_path: Path, packing: bool) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"{i} {i + 1}" for i in range(5000, 6000)))
    given = tmp_path / "given.json"
    given.write_text(train_tokenizer(lambda: ["aa"] * 3, 10).to_str())
    # The second time the cache is there.
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"data\.files .*a\.txt: nothing to predict, all of the training split is \[UNK\]"
        ):
            prepare(spec(tmp_path / "a.txt", tokenizer_file=str(given), packing=packing), VOCAB, 0)


def test_embedded_corpus_gives_full_sequences(tmp_path: Path) -> None:
    data = prepare(DataSpec(corpus="python-docs", cache_dir=str(tmp_path)), 2048, 0)
    lengths = np.concatenate([data.train.lengths, data.validation.lengths])
    assert (lengths == 128).sum() >= len(lengths) - 1
    assert len(lengths) > 500
