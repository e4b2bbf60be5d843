"""Where documents come from: the embedded corpus, text files and files of records, one document at a time."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from hvdtrain.core.data.dataset_folders import dataset_files
from hvdtrain.core.data.lines import lines
from hvdtrain.core.data.records import as_text, records
from hvdtrain.core.data.text import SourceSpec
from hvdtrain.core.errors import DataError
from hvdtrain.core.process.paths import user_path

MAX_DOCUMENT_CHARS = 1 << 20


def documents(data: SourceSpec, files: Mapping[Path, str] | None = None) -> Iterator[str]:
    """Every document of the corpus, in an order that is the same on every node.

    The embedded corpus gives one document a topic, by topic name; a `.txt` file one a paragraph (blank lines
    between); a file of records one a record. A line ends with LF, CR LF or CR. A document above 1 Mi
    characters is cut, a paragraph at a line's end if it can be, else at white space if there is any: so
    memory stays bounded whatever the files are.

    Args:
        data: the spec's data section.
        files: digests of the files to read by path, in order; None: the corpus, or the training files,
            unchecked.

    Yields:
        Text with at least one character that is not white space.

    Raises:
        DataError: a file is missing, unreadable, not UTF-8, not what its name says, or not what its digest
            says; the message has file:line where there is one.
    """
    if files is None and data.corpus is not None:
        yield from python_docs()
        return
    for path in source_files(data) if files is None else files:
        digest = None if files is None else files[path]
        yield from (
            _paragraphs(path, digest) if path.suffix == ".txt" else _texts(path, data.text_field, digest)
        )


class Files(Protocol):
    """The fields of a data section that name files.

    Attributes:
        files: paths, globs, and folders written by Hugging Face's `save_to_disk`.
        validation_files: the same, to evaluate on.
        validation_split: share of the training samples to evaluate on instead.
        suffixes: what the names of files end with.
    """

    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def validation_files(self) -> tuple[str, ...]: ...

    @property
    def validation_split(self) -> float | None: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...


def source_files(data: Files) -> tuple[Path, ...]:
    """The files to train on, each once: patterns in the spec's order, a glob's matches by name.

    Of a folder with a Hugging Face data set they are its Arrow files, in their order; of one with several
    splits, those of `train`.

    Raises:
        DataError: a pattern matches no file, or a file is of no known kind.
    """
    return _find(data.files, "data.files", data.suffixes, ("train",))


def validation_files(data: Files) -> tuple[Path, ...]:
    """The files to evaluate on: `data.validation_files`, else the splits of the data sets in `data.files`.

    Of a folder with several splits they are those of `validation`, or of `test` where there is none. There
    are none where `data.validation_split` says what to evaluate on.

    Raises:
        DataError: as `source_files`.
    """
    if data.validation_files:
        return _find(data.validation_files, "data.validation_files", data.suffixes, ("validation", "test"))
    if data.validation_split is not None:
        return ()
    folders = [pattern for pattern in data.files if user_path(pattern, "data.files:", DataError).is_dir()]
    return _find(folders, "data.files", data.suffixes, ("validation", "test", None))


def _find(
    patterns: Sequence[str], field: str, suffixes: tuple[str, ...], splits: tuple[str | None, ...]
) -> tuple[Path, ...]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        literal = user_path(pattern, f"{field}:", DataError)
        if literal.is_dir():
            found.update(dict.fromkeys(dataset_files(literal.absolute(), splits, field)))
            continue
        names = [literal] if literal.exists() else sorted(map(Path, glob.glob(str(literal), recursive=True)))
        files = [name.absolute() for name in names if not name.is_dir()]
        if not files:
            raise DataError(
                f"{field}: {pattern!r} matches no file from {Path.cwd()}; for a folder write "
                f"DIR/*{suffixes[0]}"
            )
        found.update(dict.fromkeys(files))
    for path in found:
        if path.suffix not in suffixes:
            raise DataError(f"{field}: {path} must end in one of {', '.join(suffixes)}")
        # A pipe could not be read twice, and would be waited for.
        if path.exists() and not path.is_file():
            raise DataError(f"{field}: {path} is not a regular file")
    return tuple(found)


def told_validation(data: SourceSpec, files: Sequence[Path]) -> str:
    """What the files to evaluate on are called in an error: the spec's, or the folder that holds them."""
    given = data.validation_files
    return f"data.validation_files {', '.join(given)}" if given else f"{files[0].parent}"


def python_docs() -> Iterator[str]:
    """The embedded corpus: the language reference and help topics that come with CPython, by name."""
    topics = python_topics()
    return (topics[name] for name in sorted(topics))


def python_topics() -> Mapping[str, str]:
    """The help topics that come with CPython, by name."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("data.corpus: this Python came without pydoc_data; use data.files instead") from None
    found: Mapping[str, str] = topics
    return found


def pieces(text: str, most: int) -> Iterator[str]:
    """A text in parts of at most so many characters, cut at white space, or anywhere where there is none."""
    start = 0
    while len(text) - start > most:
        part = text[start : start + most]
        end = _cut(part)
        yield part[:end]
        start += end
    yield text[start:]


def _paragraphs(path: Path, digest: str | None) -> Iterator[str]:
    parts: list[str] = []
    size = 0
    for _, part in lines(path, MAX_DOCUMENT_CHARS, digest):
        rest = ""
        if not part.isspace():
            parts.append(part)
            size += len(part.removesuffix("\n"))
            if size < MAX_DOCUMENT_CHARS:
                continue
            if not part.endswith("\n"):
                text = "".join(parts)
                cut = _cut(text)
                parts, rest = [text[:cut]], text[cut:]
        yield from _not_blank("".join(parts).removesuffix("\n"))
        parts, size = [rest], len(rest)
    yield from _not_blank("".join(parts).removesuffix("\n"))


def _texts(path: Path, field: str, digest: str | None) -> Iterator[str]:
    for where, values in records(path, {field: "data.text_field"}, digest):
        for part in pieces(as_text(values[field], field, where), MAX_DOCUMENT_CHARS):
            yield from _not_blank(part)


def _not_blank(text: str) -> Iterator[str]:
    if text and not text.isspace():
        yield text


def _cut(text: str) -> int:
    """Where the last word of a text starts; its end where there is but one word."""
    # Python has more kinds of white space than BERT, which joins what stands around the others.
    return max(map(text.rfind, " \n\r\t")) + 1 or len(text)
