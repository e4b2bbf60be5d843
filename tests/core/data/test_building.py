"""How the cache is built: by one process of several, again where it is damaged, and not on a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.core.data import prepare
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec
from tests.core.data.corpora import TEXT, VOCAB, contents, entry, same, spec, start

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
