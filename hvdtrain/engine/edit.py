"""One replacement in Horovod's sources, which refuses sources that it does not know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from hvdtrain.core.errors import EngineError
from hvdtrain.engine.versions import HOROVOD_VERSION, Versions

_EXPECTED = f"expected the untouched sources of Horovod {HOROVOD_VERSION}"


def _always(_: Versions) -> bool:
    return True


@dataclass(frozen=True)
class Edit:
    """One replacement in one file.

    Attributes:
        name: how messages call it.
        file: path inside the source distribution.
        anchor: text that must be there exactly once; None for a file that must not be there yet.
        replacement: what stands there afterwards.
        why: what breaks without it.
        applies: which versions need it.
    """

    name: str
    file: str
    anchor: str | None
    replacement: str
    why: str
    applies: Callable[[Versions], bool] = _always

    def apply(self, source: Path) -> None:
        """Edits the file under `source`.

        Args:
            source: the unpacked source distribution.

        Raises:
            EngineError: the file is missing, or the anchor is not there exactly once; a new file is there.
        """
        path = source / self.file
        if self.anchor is None:
            if path.exists():
                raise EngineError(f"edit {self.name!r}: {self.file} is in these sources; {_EXPECTED}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.replacement)
            return
        if not path.is_file():
            raise EngineError(f"edit {self.name!r}: {self.file} is not in these sources; {_EXPECTED}")
        text = path.read_text()
        count = text.count(self.anchor)
        if count != 1:
            first = self.anchor.strip().splitlines()[0]
            raise EngineError(
                f"edit {self.name!r}: {self.file} holds the text to replace {count} times instead of once "
                f"(it starts with {first!r}); {_EXPECTED}"
            )
        path.write_text(text.replace(self.anchor, self.replacement))


def patch(name: str) -> str:
    """A text that is too long to stand beside its edit: the content of a file in `patches`."""
    return (files("hvdtrain.engine") / "patches" / name).read_text()
