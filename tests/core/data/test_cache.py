"""The node-local cache: built once, waited for, checked when opened, rebuilt when torn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from hvdtrain.core.data import Dataset, Sequences, building, prepare
from hvdtrain.core.data.hashing import file_stamp, hash_contents
from hvdtrain.core.data.lines import hash_file
from hvdtrain.core.data.tokenizer import train_tokenizer
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec

VOCAB = 300
TEXT = "\n\n".join(
    f"Paragraph {i} tells of {i * 7919} things and of {'many ' * (i % 9)}others." for i in range(120)
)

# Prints what it announces and, last, what it opened; arguments: DataSpec as JSON, vocabulary, seed.
PREPARE = """
import json, sys
from hvdtrain.core.data import prepare
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec
try:
    dataset = prepare(
        DataSpec.model_validate_json(sys.argv[1]), int(sys.argv[2]), 0, lambda line: print(line, flush=True)
    )
except DataError as error:
    sys.exit(f"DataError: {error}")
print(json.dumps([dataset.fingerprint, len(dataset.train), len(dataset.validation)]))
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


def spec(corpus: Path, cache: str = "cache", **more: Any) -> DataSpec:
    more = {"max_seq_length": 16, **more}
    return DataSpec(files=(str(corpus),), cache_dir=str(corpus.parent / cache), **more)


def start(data: DataSpec, before: str = "", vocab_size: int = VOCAB) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + PREPARE, data.model_dump_json(), str(vocab_size)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(view: Sequences) -> list[list[int]]:
    return [view[i].tolist() for i in range(len(view))]


def same(one: Dataset, other: Dataset) -> bool:
    return (
        one.fingerprint == other.fingerprint
        and contents(one.train) == contents(other.train)
        and contents(one.validation) == contents(other.validation)
    )


def entry(cache: Path) -> Path:
    """The only cache directory, and nothing else but locks and the index."""
    [found] = [path for path in cache.iterdir() if path.suffix not in (".lock", ".json")]
    return found


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


# Argument: DataSpec as JSON. Prints the most memory it ever had, in MiB.
MEASURE = """
import resource, sys
from hvdtrain.core.data import prepare
from hvdtrain.core.tasks.masked_lm import DataSpec
prepare(DataSpec.model_validate_json(sys.argv[1]), 300, 0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_does_not_grow_with_a_line_or_a_document(tmp_path: Path) -> None:
    words = TEXT.replace("\n\n", " ") * 300
    assert len(words) > 2 << 20
    (tmp_path / "a.txt").write_text(words)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": words}))
    peaks = []
    for files in (("a.txt", "b.jsonl"), ("small.txt",)):
        (tmp_path / "small.txt").write_text(TEXT)
        data = DataSpec(
            files=tuple(str(tmp_path / name) for name in files), cache_dir=str(tmp_path / "cache")
        )
        command = [sys.executable, "-c", MEASURE, data.model_dump_json()]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    # The library takes 500 MiB for such a document at once.
    assert peaks[0] < peaks[1] + 200


def test_two_nodes_build_the_same(corpus: Path) -> None:
    one, two = (start(spec(corpus, cache)) for cache in ("node1", "node2"))
    assert one.communicate(timeout=60)[0].splitlines()[-1] == two.communicate(timeout=60)[0].splitlines()[-1]
    files = [entry(corpus.parent / node) for node in ("node1", "node2")]
    assert files[0].name == files[1].name
    for name in ("tokens.bin", "offsets.bin", "tokenizer.json", "meta.json"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()


def test_one_process_builds_and_three_wait(corpus: Path) -> None:
    processes = [start(spec(corpus)) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sum("tokenising" in out for out, _ in outputs) == 1
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
    assert {path.name for path in entry(corpus.parent / "cache").iterdir()} == {
        "tokens.bin",
        "offsets.bin",
        "tokenizer.json",
        "meta.json",
    }


# Stops for ever once part of the tokens is on disk, as a slow or dying machine might.
STALL = """
import signal
from hvdtrain.core.data import store
def stall(directory, sequences, *rest, write=store.write_store):
    def some():
        for number, sequence in enumerate(sequences):
            if number == 5:
                print("half way", flush=True)
                signal.pause()
            yield sequence
    return write(directory, some(), *rest)
import hvdtrain.core.data.cache as cache
cache.write_store = stall
"""


def test_killed_builder_hands_over_to_a_waiting_process(corpus: Path) -> None:
    builder = start(spec(corpus), before=STALL)
    assert builder.stdout is not None
    while "half way" not in builder.stdout.readline():
        assert builder.poll() is None
    waiting = start(spec(corpus))
    assert waiting.stdout is not None
    assert "another process of this node is preparing the data" in waiting.stdout.readline()
    os.kill(builder.pid, signal.SIGKILL)
    builder.communicate()
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, err
    assert "tokenising" in out
    assert json.loads(out.splitlines()[-1])[0] == prepare(spec(corpus), VOCAB, 0).fingerprint
    assert entry(corpus.parent / "cache").name.isalnum()


def damage_cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, Path.unlink])
@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "tokenizer.json"])
def test_damaged_cache_is_rebuilt(corpus: Path, name: str, damage: Any) -> None:
    expected = contents(prepare(spec(corpus), VOCAB, 0).train)
    damage(entry(corpus.parent / "cache") / name)
    lines: list[str] = []
    assert contents(prepare(spec(corpus), VOCAB, 0, lines.append).train) == expected
    assert "is damaged" in lines[0]
    assert name in lines[0]
    assert "tokenising" in lines[1]


@pytest.mark.parametrize("meta", ["", "{", "[]", "{}", '{"files": {}, "token_ids": {"special": []}}'])
def test_damaged_description_is_rebuilt(corpus: Path, meta: str) -> None:
    expected = prepare(spec(corpus), VOCAB, 0)
    (entry(corpus.parent / "cache") / "meta.json").write_text(meta)
    assert same(prepare(spec(corpus), VOCAB, 0), expected)


def test_open_data_outlives_a_rebuild(corpus: Path) -> None:
    data = prepare(spec(corpus), VOCAB, 0)
    expected = contents(data.train)
    (entry(corpus.parent / "cache") / "meta.json").write_text("")
    prepare(spec(corpus), VOCAB, 0)
    assert contents(data.train) == expected


def test_large_file_is_checked_at_its_ends_and_in_between(
    monkeypatch: pytest.MonkeyPatch, corpus: Path
) -> None:
    monkeypatch.setattr("hvdtrain.core.data.stored_files._BLOCK", 32)
    monkeypatch.setattr("hvdtrain.core.data.stored_files._BLOCKS", 4)
    expected = contents(prepare(spec(corpus), VOCAB, 0).train)
    tokens = entry(corpus.parent / "cache") / "tokens.bin"
    assert tokens.stat().st_size > 32 * 4
    for position in (0, -1):
        content = bytearray(tokens.read_bytes())
        content[position] ^= 1
        tokens.write_bytes(content)
        lines: list[str] = []
        assert contents(prepare(spec(corpus), VOCAB, 0, lines.append).train) == expected
        assert "tokens.bin" in lines[0]


@pytest.mark.parametrize("limit", [200, 4000])
def test_full_disk_is_one_clear_error_and_leaves_nothing(corpus: Path, limit: int) -> None:
    full = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    process = start(spec(corpus), before=full)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("DataError: data.cache_dir: cannot write the data cache in ")
    assert "set data.cache_dir or HVDTRAIN_CACHE_DIR" in err
    assert len(err.splitlines()) == 1
    # On a busy machine the corpus is old enough by then for its hash to be remembered.
    left = [path for path in (corpus.parent / "cache").rglob("*") if path.name != "sources.json"]
    assert sum(path.stat().st_size for path in left) == 0
    assert {path.suffix for path in left} == {".lock"}


def test_cache_directory_that_cannot_be_made_is_refused(corpus: Path) -> None:
    (corpus.parent / "file").write_text("")
    with pytest.raises(
        DataError, match=r"data\.cache_dir: cannot write the data cache in .*file/cache: Not a directory"
    ):
        prepare(spec(corpus, cache="file/cache"), VOCAB, 0)


def edit(path: Path) -> None:
    """Other text of the same size, under the same modification time."""
    times = path.stat()
    path.write_text(path.read_text().replace("things", "thinks"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


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


def test_embedded_corpus_gives_full_sequences(tmp_path: Path) -> None:
    data = prepare(DataSpec(corpus="python-docs", cache_dir=str(tmp_path)), 2048, 0)
    lengths = np.concatenate([data.train.lengths, data.validation.lengths])
    assert (lengths == 128).sum() >= len(lengths) - 1
    assert len(lengths) > 500


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
