"""Reading documents, and saying where a file is wrong."""

from __future__ import annotations

import os
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from hvdtrain.core.data import sources
from hvdtrain.core.data.hashing import content_hash
from hvdtrain.core.data.sources import documents, source_files
from hvdtrain.core.errors import DataError
from hvdtrain.core.sections import DataSpec


def read(*files: Path | str, **more: str) -> list[str]:
    return list(documents(DataSpec(files=tuple(map(str, files)), **more)))


def test_embedded_corpus_is_pythons_help_by_topic() -> None:
    assert list(documents(DataSpec(corpus="python-docs"))) == [topics[name] for name in sorted(topics)]


def test_text_file_gives_its_paragraphs(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\ntwo\r\n \t\r\n\r\nthree\n\n\n\nvier, fünf".encode())
    assert read(file) == ["one\ntwo", "three", "vier, fünf"]


def test_endless_paragraph_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_PARAGRAPH_CHARS", 10)
    (tmp_path / "a.txt").write_text("12345\n67890\nabc\n\nd\n")
    assert read(tmp_path / "a.txt") == ["12345\n67890", "abc", "d"]


def test_line_too_long_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "a.txt").write_text("short\n" + "x" * (1 << 20) + "\n")
    with pytest.raises(DataError, match=r"a\.txt:2: line above 1 MiB"):
        read(tmp_path / "a.txt")


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


def test_globs_are_sorted_and_files_come_once(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt", "note.md"):
        (tmp_path / name).write_text(name)
    patterns = (f"{tmp_path}/deep/c.txt", f"{tmp_path}/**/*.txt")
    assert read(*patterns) == ["deep/c.txt", "a.txt", "b.txt"]


def test_file_whose_name_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("odd")
    assert read(tmp_path / "a[1].txt") == ["odd"]


@pytest.mark.parametrize("pattern", ["missing.txt", "none/*.txt", "."])
def test_pattern_without_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"data\.files: '.*' matches no file"):
        read(pattern)


def test_unknown_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"a\.csv must end in \.txt .* or \.jsonl"):
        source_files(DataSpec(files=(str(tmp_path / "a.csv"),)))


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    # A loop of links cannot be opened by anybody, root included.
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt: cannot be read: Too many levels"):
        read(tmp_path / "*.txt")


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
        assert content_hash(self.spec(one), index) == content_hash(self.spec(two), index)
        assert content_hash(self.spec(one), index) != content_hash(self.spec(three), index)
        assert content_hash(self.spec(one, three), index) != content_hash(self.spec(three, one), index)

    def test_same_size_and_modification_time_do_not_hide_a_change(self, tmp_path: Path) -> None:
        index = tmp_path / "index.json"
        before = content_hash(self.spec(self.settled(tmp_path / "a.txt", "old")), index)
        assert content_hash(self.spec(self.settled(tmp_path / "a.txt", "new")), index) != before

    def test_remembered_hash_saves_reading(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("hvdtrain.core.data.hashing._SETTLED_NS", 0)
        index = tmp_path / "index.json"
        spec = self.spec(self.settled(tmp_path / "a.txt", "text"))
        before = content_hash(spec, index)
        monkeypatch.delattr("hvdtrain.core.data.hashing.hash_file")
        assert content_hash(spec, index) == before

    @pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 5}'])
    def test_damaged_index_is_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        monkeypatch.setattr("hvdtrain.core.data.hashing._SETTLED_NS", 0)
        index = tmp_path / "index.json"
        spec = self.spec(self.settled(tmp_path / "a.txt", "text"))
        expected = content_hash(spec, tmp_path / "other.json")
        index.write_text(damage)
        assert content_hash(spec, index) == expected
        assert content_hash(spec, index) == expected
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "index.json", "other.json"]


def test_link_is_read_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("content")
    (tmp_path / "a.txt").symlink_to(tmp_path / "blob")
    assert read(tmp_path / "a.txt") == ["content"]
