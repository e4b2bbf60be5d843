"""The embedded data of text classification: paragraphs of Python's manual, by the part that they are from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from hvdtrain.core.data.sources import python_topics

# Shorter ones are mostly headings.
_LEAST_WORDS = 5
_PARTS = {
    "lexical analysis": "formatted floating id-classes identifiers imaginary integers numbers strings",
    "data model": "attribute-access callable-types context-managers customization numeric-types objects "
    "sequence-types specialnames types",
    "execution model": "dynamic-features exceptions execmodel naming",
    "expressions": "atom-identifiers atom-literals attribute-references await binary bitwise booleans calls "
    "comparisons conversions dict exprlists in lambda lists operator-summary power shifting slicings "
    "subscriptions unary",
    "simple statements": "assert assignment augassign break continue del global import nonlocal pass raise "
    "return yield",
    "compound statements": "async class compound else for function if try while with",
    "built-in types": "bltin-code-objects bltin-ellipsis-object bltin-null-object bltin-type-objects "
    "specialattrs string-methods truth typesfunctions typesmapping typesmethods typesmodules typesseq "
    "typesseq-mutable",
    "standard library": "debugger formatstrings",
}
PART_NAMES = tuple(sorted(_PARTS))


def python_parts() -> Iterator[tuple[str, str, str]]:
    """Paragraphs with the part of the manual that they are from, each once.

    A topic that this version of Python lacks gives none, and neither does one that is in no part. Paragraphs
    of fewer than five words are left out, and so are those that several parts share.

    Yields:
        The name of the topic, the paragraph, and the part.
    """
    found: dict[str, str] = {}
    parts: defaultdict[str, set[str]] = defaultdict(set)
    topics = python_topics()
    for part, names in _PARTS.items():
        for name in names.split():
            for paragraph in _paragraphs(topics.get(name, "")):
                found.setdefault(paragraph, name)
                parts[paragraph].add(part)
    for paragraph, name in found.items():
        part, *others = parts[paragraph]
        if not others:
            yield name, paragraph, part


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n[ \t]*\n", text):
        if len(paragraph.split()) >= _LEAST_WORDS:
            yield paragraph.strip()
