"""The cache of prepared data: what names it, and that it holds what its name says."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from hvdtrain.core.data import building, prepare
from hvdtrain.core.data.hashing import file_stamp, hash_contents
from hvdtrain.core.data.lines import hash_file
from hvdtrain.core.data.tokenizer import train_tokenizer
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec
from tests.core.data.corpora import TEXT, VOCAB, contents, edit, entry, same, spec


def test_second_start_reads_the_cache(corpus: Path) -> None:
    lines: list[str] = []
    first = prepare(spec(corpus), VOCAB, 0, lines.append)
    assert len(lines) == 2
    assert "0.00% of the text [UNK]; tokenizer of 212 tokens (model.vocab_size 300)" in lines[1]
    assert same(first, prepare(spec(corpus), VOCAB, 0, lines.append))
    assert len(lines) == 2


def test_what_changes_the_tokens_changes_the_cache(corpus: Path) -> None:
    given = corpus.parent / "given.json"
    given.write_text(train_tokenizer(lambda: [TEXT], 200).to_str())
    variants = [
        prepare(spec(corpus), VOCAB, 0),
        prepare(spec(corpus, max_seq_length=20), VOCAB, 0),
        prepare(spec(corpus, packing=False), VOCAB, 0),
        prepare(spec(corpus), 100, 0),
        prepare(spec(corpus, tokenizer_file=str(given)), VOCAB, 0),
        prepare(spec(corpus, lowercase=False), VOCAB, 0),
        prepare(spec(corpus, strip_accents=True), VOCAB, 0),
    ]
    corpus.write_text(TEXT.replace("things", "thinks"))
    variants.append(prepare(spec(corpus), VOCAB, 0))
    assert len({data.tokenizer_path for data in variants}) == len(variants)
    assert len({data.fingerprint for data in variants}) == len(variants)


def test_given_tokenizer_is_kept_and_checked(corpus: Path) -> None:
    given = corpus.parent / "given.json"
    given.write_text(train_tokenizer(lambda: [TEXT], 200).to_str())
    data = prepare(spec(corpus, tokenizer_file=str(given)), VOCAB, 0)
    assert (
        Tokenizer.from_file(str(data.tokenizer_path)).get_vocab()
        == Tokenizer.from_file(str(given)).get_vocab()
    )
    # The cache above must not hide that the same tokenizer is too large for a smaller model.
    with pytest.raises(DataError, match=r"given\.json has \d+ tokens, model\.vocab_size is 50"):
        prepare(spec(corpus, tokenizer_file=str(given)), 50, 0)
    with pytest.raises(DataError, match=r"data\.tokenizer_file: .*none\.json: cannot be read"):
        prepare(spec(corpus, tokenizer_file=str(corpus.parent / "none.json")), VOCAB, 0)


@pytest.mark.parametrize("step", ["hash_contents", "survey", "train_tokenizer", "token_ids"])
def test_edit_after_the_cache_was_named_is_refused(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    modules = {"hash_contents": "cache", "survey": "tokenizer"}
    where = f"hvdtrain.core.data.{modules.get(step, 'wordpiece')}.{step}"
    module, name = where.rsplit(".", 1)
    original = getattr(sys.modules[module], name)

    def then_edited(*arguments: Any) -> Any:
        found = original(*arguments)
        edit(corpus)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(where, then_edited)
        with pytest.raises(DataError, match=r"data\.files: .*corpus\.txt: changed while it was read"):
            prepare(spec(corpus), VOCAB, 0)
    assert {path.suffix for path in (corpus.parent / "cache").iterdir()} <= {".lock", ".json"}
    assert same(prepare(spec(corpus), VOCAB, 0), prepare(spec(corpus, "other"), VOCAB, 0))


def test_edit_while_another_process_builds_is_refused(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def waited(path: Path, announce: Any, locked: Any = building._locked) -> Any:
        edit(corpus)
        return locked(path, announce)

    monkeypatch.setattr(building, "_locked", waited)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(spec(corpus), VOCAB, 0)


def test_edit_between_its_times_and_its_hash_is_noticed(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = corpus.parent / "index.json"
    monkeypatch.setattr("hvdtrain.core.data.hashing._SETTLED_NS", 0)

    def edited_first(path: Path) -> str:
        edit(path)
        return hash_file(path)

    with monkeypatch.context() as patch:
        patch.setattr("hvdtrain.core.data.hashing.hash_file", edited_first)
        hash_contents(spec(corpus), index)
    corpus.write_text(TEXT)
    assert hash_contents(spec(corpus), index) == hash_contents(spec(corpus), corpus.parent / "none.json")


def test_wrong_remembered_hash_is_forgotten(corpus: Path) -> None:
    os.utime(corpus, ns=(10**9, 10**9))
    index = corpus.parent / "cache" / "sources.json"
    index.parent.mkdir()
    stamp = "-".join(map(str, file_stamp(corpus)))
    index.write_text(json.dumps({str(corpus): f"{stamp} {'0' * 40}"}))
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(spec(corpus), VOCAB, 0)
    prepare(spec(corpus), VOCAB, 0)


def test_edit_of_a_given_tokenizer_is_no_part_of_the_cache_named_before(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = corpus.parent / "given.json"
    before = train_tokenizer(lambda: [TEXT], 200).to_str()
    given.write_text(before)

    def then_edited(*arguments: Any) -> Any:
        found = hash_contents(*arguments)
        given.write_text(train_tokenizer(lambda: [TEXT], 100).to_str())
        return found

    monkeypatch.setattr("hvdtrain.core.data.cache.hash_contents", then_edited)
    data = prepare(spec(corpus, tokenizer_file=str(given)), VOCAB, 0)
    assert Tokenizer.from_file(str(data.tokenizer_path)).get_vocab() == Tokenizer.from_str(before).get_vocab()


def test_environment_names_the_default_place(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HVDTRAIN_CACHE_DIR", str(tmp_path / "elsewhere"))
    data = prepare(DataSpec(files=(str(corpus),), max_seq_length=16), VOCAB, 0)
    assert data.tokenizer_path.is_relative_to(tmp_path / "elsewhere" / "data")


class TestValidationFiles:
    @pytest.fixture
    def held_out(self, tmp_path: Path) -> Path:
        path = tmp_path / "held_out.csv"
        path.write_text("id,text\n1,Paragraph 1 tells of others\n2,of many things\n")
        return path

    def test_are_evaluated_on_and_take_nothing_from_training(self, corpus: Path, held_out: Path) -> None:
        whole = prepare(spec(corpus, validation_split=0.0, packing=False), VOCAB, 0)
        found = prepare(spec(corpus, validation_files=(str(held_out),), packing=False), VOCAB, 0)
        assert contents(found.train) == contents(whole.train)
        tokenizer = Tokenizer.from_file(str(whole.tokenizer_path))
        texts = ("Paragraph 1 tells of others", "of many things")
        assert contents(found.validation) == [tokenizer.encode(text).ids for text in texts]
        assert found.tokenizer_path == whole.tokenizer_path

    def test_fingerprint_covers_both_and_the_seed_chooses_nothing(self, corpus: Path, held_out: Path) -> None:
        data = spec(corpus, validation_files=(str(held_out),))
        before = prepare(data, VOCAB, 0)
        assert same(before, prepare(data, VOCAB, 1))
        assert same(before, prepare(spec(corpus, "other", validation_files=(str(held_out),)), VOCAB, 0))
        held_out.write_text("id,text\n1,Paragraph 2 tells of others\n2,of many things\n")
        changed = prepare(data, VOCAB, 0)
        assert contents(changed.train) == contents(before.train)
        edit(corpus)
        prints = {
            before.fingerprint,
            changed.fingerprint,
            prepare(data, VOCAB, 0).fingerprint,
            prepare(spec(corpus), VOCAB, 0).fingerprint,
        }
        assert len(prints) == 4

    def test_caches_without_them_are_as_before(self, corpus: Path, held_out: Path) -> None:
        plain = prepare(spec(corpus), VOCAB, 0)
        both = prepare(spec(corpus, validation_files=(str(held_out),)), VOCAB, 0)
        assert both.tokenizer_path == plain.tokenizer_path
        assert same(plain, prepare(spec(corpus, validation_split=0.05), VOCAB, 0))

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("id,text\n", r"data\.validation_files .*held_out\.csv: no text found"),
            ('id,text\n1,"one\n', r"held_out\.csv:2: not CSV: a quote is never closed"),
            ("id,label\n1,2\n", r"held_out\.csv:1: no column 'text' .*set data\.text_field"),
        ],
    )
    def test_bad_ones_are_one_message_and_no_cache(
        self, corpus: Path, held_out: Path, text: str, told: str
    ) -> None:
        held_out.write_text(text)
        with pytest.raises(DataError, match=told):
            prepare(spec(corpus, validation_files=(str(held_out),)), VOCAB, 0)
        assert entry(corpus.parent / "cache") == prepare(spec(corpus), VOCAB, 0).tokenizer_path.parent

    def test_missing_ones_are_told_before_anything_is_made(self, corpus: Path) -> None:
        with pytest.raises(DataError, match=r"data\.validation_files: 'none\.csv' matches no file"):
            prepare(spec(corpus, validation_files=("none.csv",)), VOCAB, 0)
        assert not (corpus.parent / "cache").exists()

    def test_and_a_split_contradict_each_other(self, corpus: Path) -> None:
        assert spec(corpus, validation_files=("a.csv",), validation_split=0.0)
        with pytest.raises(ValueError, match="validation_files are what is evaluated on"):
            spec(corpus, validation_files=("a.csv",), validation_split=0.05)
