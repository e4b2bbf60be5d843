"""Reading documents, and saying where a file is wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data import records, sources
from hvdtrain.core.data.hashing import hash_contents
from hvdtrain.core.data.sources import documents, source_files
from hvdtrain.core.errors import DataError
from hvdtrain.core.tasks.masked_lm import DataSpec


def read(*files: Path | str, **more: str) -> list[str]:
    return list(documents(DataSpec(files=tuple(map(str, files)), **more)))


def test_embedded_corpus_is_pythons_help_by_topic() -> None:
    assert list(documents(DataSpec(corpus="python-docs"))) == [topics[name] for name in sorted(topics)]


def test_text_file_gives_its_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\r\n \t\r\n\r\nthree\n\n\n\nvier, fünf".encode())
    assert read(file) == ["one\ntwo", "three", "vier, fünf"]


def test_endless_paragraph_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_CHARS", 10)
    (tmp_path / "a.txt").write_text("12345\n67890\nabc\n\nd\n")
    assert read(tmp_path / "a.txt") == ["12345\n67890", "abc", "d"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_ends_a_line(tmp_path: Path, end: str) -> None:
    (tmp_path / "a.txt").write_bytes(end.join(["one", "two", "", "three", " ", "", "four"]).encode())
    assert read(tmp_path / "a.txt") == ["one\ntwo", "three", "four"]
    (tmp_path / "b.jsonl").write_bytes(end.join(['{"text": "one"}', "", '{"text": "two"}', "{"]).encode())
    with pytest.raises(DataError, match=r"b\.jsonl:4: not JSON"):
        read(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_bytes(end.join(["one", "two"]).encode() + b"\xff")
    with pytest.raises(DataError, match=r"c\.txt:2: not UTF-8: byte 0xff at column 4"):
        read(tmp_path / "c.txt")


@given(st.text(st.sampled_from("ab \n\r\t文"), max_size=200), st.integers(1, 30))
def test_long_lines_and_documents_are_cut_at_white_space_and_nothing_is_lost(text: str, most: int) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "MAX_DOCUMENT_CHARS", most)
        file = Path(folder, "a.txt")
        file.write_text(text, newline="")
        Path(folder, "b.jsonl").write_text(json.dumps({"text": text}))
        paragraphs, parts = read(file), read(Path(folder, "b.jsonl"))
    for found in (paragraphs, parts):
        assert "".join("".join(found).split()) == "".join(text.split())
        assert all(len(part) <= 3 * most + 2 for part in found)
        # No word comes apart that is shorter than what is read at once.
        if all(len(word) < most for word in text.split()):
            assert [word for part in found for word in part.split()] == text.split()


def test_json_line_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_CHARS", 1 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n{"text": "' + "x" * (1 << 20) + '"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: line above 1 Mi characters"):
        read(tmp_path / "a.jsonl")


@pytest.mark.parametrize("value", ["[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000])
def test_deep_json_is_one_message(tmp_path: Path, value: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "x", "more": ' + value + "}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: JSON nested too deeply"):
        read(tmp_path / "a.jsonl")


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": " "}\n{"id": 1, "body": "two\\nlines"}\n')
    assert read(tmp_path / "a.jsonl", text_field="body") == ["one", "two\nlines"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"b\.jsonl:2: not JSON"),
        ('["a"]', r"b\.jsonl:2: expected a JSON object, found list"),
        (
            '{"body": "a", "id": 3}',
            r"b\.jsonl:2: no field 'text' \(fields here: body, id\); set data\.text_field",
        ),
        ('{"text": 5}', r"b\.jsonl:2: field 'text' should be text, found int"),
        ('{"text": "a\\ud800"}', r"b\.jsonl:2: field 'text' holds half a surrogate pair at character 1"),
    ],
)
def test_bad_json_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "b.jsonl")


def test_bad_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"first\n\nna\xefve\n")
    with pytest.raises(DataError, match=r"latin\.txt:3: not UTF-8: byte 0xef at column 3"):
        read(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("zwei\n".encode("utf-16"), r":1: not UTF-8: byte 0xff at column 1"),
        ("ab\nzwei\n".encode("utf-16-le"), r":1: NUL at column 2: not text, or UTF-16"),
        (gzip.compress(b"text", mtime=0), r":1: (not UTF-8|NUL)"),
        (b"fine\n\nbin\0ary", r":3: NUL at column 4"),
        (b"caf\xc3", r":1: not UTF-8: byte 0xc3 at column 4"),
        (b"\xed\xa0\x80", r":1: not UTF-8: byte 0xed at column 1"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    lines = content.replace(b"fine\n\n", b'{"text": "fine"}\n\n') if name == "a.jsonl" else content
    (tmp_path / name).write_bytes(lines)
    with pytest.raises(DataError, match=re.escape(name) + told):
        read(tmp_path / name)


def test_bad_bytes_far_inside_a_long_line_have_their_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_DOCUMENT_CHARS", 10)
    (tmp_path / "a.txt").write_bytes(b"one\n" + b"x" * 35 + b"\xff")
    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8: byte 0xff at column 36"):
        read(tmp_path / "a.txt")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt is not a regular file"):
        read(tmp_path / "a.txt")


def test_many_fields_are_not_all_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({f"field{i}": 1 for i in range(1000)}))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl")
    assert len(str(caught.value)) < 1000


def test_globs_are_sorted_and_files_come_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "note.md"):
        (tmp_path / name).write_text(name)
    patterns = (f"{tmp_path}/deep/c.txt", f"{tmp_path}/**/*.txt")
    assert read(*patterns) == ["deep/c.txt", "a.txt", "b.txt"]


def test_file_whose_name_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("odd")
    assert read(tmp_path / "a[1].txt") == ["odd"]


@pytest.mark.parametrize("pattern", ["missing.txt", "none/*.txt"])
def test_pattern_without_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.files: '.*' matches no file"):
        read(pattern)


def test_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xls").write_text("a,b")
    with pytest.raises(DataError, match=r"a\.xls must end in one of \.txt, \.csv, \.tsv, \.jsonl, \.parquet"):
        source_files(DataSpec(files=(str(tmp_path / "a.xls"),)))


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    # A loop of links cannot be opened by anybody, root included.
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read: Too many levels"):
        read(tmp_path / "*.txt")


def digest(data: DataSpec, index: Path) -> str:
    return hash_contents(data, index).digest


class TestContentHash:
    def spec(self, *files: Path) -> DataSpec:
        return DataSpec(files=tuple(map(str, files)))

    def settled(self, path: Path, text: str) -> Path:
        """A file last written long ago, as far as its times tell."""
        path.write_text(text)
        os.utime(path, ns=(10**9, 10**9))
        return path

    def test_knows_contents_not_names(self, tmp_path: Path) -> None:
        index = tmp_path / "index.json"
        one, two, three = (self.settled(tmp_path / f"{i}.txt", t) for i, t in enumerate(["x", "x", "y"]))
        assert digest(self.spec(one), index) == digest(self.spec(two), index)
        assert digest(self.spec(one), index) != digest(self.spec(three), index)
        assert digest(self.spec(one, three), index) != digest(self.spec(three, one), index)

    def test_same_size_and_modification_time_do_not_hide_a_change(self, tmp_path: Path) -> None:
        index = tmp_path / "index.json"
        before = digest(self.spec(self.settled(tmp_path / "a.txt", "old")), index)
        assert digest(self.spec(self.settled(tmp_path / "a.txt", "new")), index) != before

    def test_remembered_hash_saves_reading(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hvdtrain.core.data.hashing._SETTLED_NS", 0)
        index = tmp_path / "index.json"
        spec = self.spec(self.settled(tmp_path / "a.txt", "text"))
        before = digest(spec, index)
        monkeypatch.delattr("hvdtrain.core.data.hashing.hash_file")
        assert digest(spec, index) == before

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 5}'])
    def test_damaged_index_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        monkeypatch.setattr("hvdtrain.core.data.hashing._SETTLED_NS", 0)
        index = tmp_path / "index.json"
        spec = self.spec(self.settled(tmp_path / "a.txt", "text"))
        expected = digest(spec, tmp_path / "other.json")
        index.write_text(damage)
        assert digest(spec, index) == expected
        assert digest(spec, index) == expected
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "index.json", "other.json"]


def test_link_is_read_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("content")
    (tmp_path / "a.txt").symlink_to(tmp_path / "blob")
    assert read(tmp_path / "a.txt") == ["content"]
