"""YAML 1.2 in which nothing means something else than it looks like, and nothing is given twice."""

from __future__ import annotations

import re
import warnings
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, ReusedAnchorWarning, YAMLError

from hvdtrain.core.errors import SpecError

MAX_CHARS = 1 << 20
# Aliases can make a few lines mean billions of values.
_MAX_VALUES = 100_000
_SCALARS = (str, int, float, bool, type(None))
_HINTS = (
    ("undefined alias|scanning an alias", "a value that begins with * needs quotes: ['*.txt']"),
    ("scanning an anchor", "a value that begins with & needs quotes"),
    (r"character '\\t'", "YAML is indented with spaces, not with tabs"),
    ("cannot start any token", "a value that begins with this character needs quotes"),
    ("constructor for the tag", "a value that begins with ! needs quotes"),
    ("another document", "one file holds one document, and --- begins another"),
)


class _Constructor(SafeConstructor):
    """YAML 1.2's core types: a date is text, and so is =."""


for _tag in ("timestamp", "value"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", SafeConstructor.construct_yaml_str)


def load_yaml(text: str, where: str, positions: bool = True) -> Any:
    """Read a YAML 1.2 document: mappings with scalar keys, lists, text, numbers, booleans and nulls.

    Args:
        text: the document.
        where: what an error begins with, such as the file's name.
        positions: whether errors name line and column.

    Returns:
        Its value, made of dict, list, str, int, float, bool and None.

    Raises:
        SpecError: it is not valid, has a key twice, is too large or nested too deeply, or holds values of
            other types.
    """
    if len(text) > MAX_CHARS:
        raise SpecError(f"{where}: above {MAX_CHARS >> 20} Mi characters, so hardly what was meant")
    if re.search(r"^%YAML +(?!1\.2)", text, re.MULTILINE):
        raise SpecError(f"{where}: %YAML asks for another version; this is read as YAML 1.2")
    reader = YAML(typ="safe", pure=True)
    reader.Constructor = _Constructor
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)
            found = reader.load(text)
        _Plain(where).check(found)
    except RecursionError:
        raise SpecError(f"{where}: not valid YAML: nested too deeply") from None
    except (YAMLError, ValueError) as error:
        raise SpecError(_told(error, where, positions)) from None
    return found


def _told(error: Exception, where: str, positions: bool) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    if positions and mark is not None:
        where = f"{where}:{mark.line + 1}:{mark.column + 1}"
    problem = str(getattr(error, "problem", None) or str(error).splitlines()[0])
    twice = re.match(r'found duplicate key "(.*?)" with', problem, re.DOTALL)
    if twice:
        return f"{where}: the key {twice[1]!r} is given twice"
    context = f"{getattr(error, 'context', None) or ''} {problem}"
    hints = [hint for pattern, hint in _HINTS if re.search(pattern, context)]
    return f"{where}: not valid YAML: {problem}" + (f"; {hints[0]}" if hints else "")


class _Plain:
    """Sees to it that a value can be written as JSON, and is not too large once aliases are followed."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._left = _MAX_VALUES
        self._parents: list[int] = []

    def check(self, value: Any) -> None:
        """Raise SpecError unless it is so."""
        self._left -= 1
        if self._left < 0:
            raise SpecError(f"{self._where}: more than {_MAX_VALUES:,} values; do aliases (*name) multiply?")
        if id(value) in self._parents:
            raise SpecError(f"{self._where}: an alias (*name) lies inside its own anchor (&name)")
        if isinstance(value, dict | list):
            self._parents.append(id(value))
            for key in value if isinstance(value, dict) else ():
                self._scalar(key, "a key")
            for inner in value.values() if isinstance(value, dict) else value:
                self.check(inner)
            self._parents.pop()
        else:
            self._scalar(value, "a value")

    def _scalar(self, value: Any, what: str) -> None:
        if not isinstance(value, _SCALARS):
            raise SpecError(
                f"{self._where}: {what} of type {type(value).__name__}; "
                "expected text, a number, true, false or null"
            )
