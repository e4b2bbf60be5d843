"""Names in a spec that stand for code: what this package has, what others install, and dotted paths."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from hvdtrain.core.errors import SpecError


class Registry:
    """Finds objects of one kind by name; nothing is imported before it is asked for."""

    def __init__(self, field: str, group: str, builtin: Mapping[str, str]) -> None:
        """Say where objects come from.

        Args:
            field: of the spec, for errors.
            group: of the entry points by which other distributions add theirs.
            builtin: this package's own: a module, or `module:attribute`, by name.
        """
        self._field, self._group, self._builtin = field, group, dict(builtin)

    @property
    def builtin(self) -> tuple[str, ...]:
        """The names of this package's own."""
        return tuple(self._builtin)

    def find(self, name: str) -> Any:
        """The object of a name.

        Args:
            name: one of this package's, the name of an entry point, or a path as `package.module:Name` (or
                `package.module`, for a module that is one).

        Raises:
            SpecError: nothing has this name, or it cannot be imported.
        """
        if name in self._builtin:
            return self._load(self._builtin[name], name)
        if ":" in name or "." in name:
            return self._load(name, name)
        installed = self.installed()
        if name in installed:
            return self._load(installed[name], name)
        names = [*self._builtin, *installed]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        raise SpecError(
            f"{self._field}: expected one of {', '.join(map(repr, names))}, or a path as "
            f"'package.module:Name' (found {name!r})" + (f"; did you mean {near[0]!r}?" if near else "")
        )

    def installed(self) -> dict[str, str]:
        """What other distributions have installed: paths by name."""
        return {point.name: point.value for point in entry_points(group=self._group)}

    def _load(self, path: str, name: str) -> Any:
        return load_path(path, self._field, name)


def load_path(path: str, field: str, name: str | None = None) -> Any:
    """Import what a dotted path names.

    Args:
        path: `package.module:Name`, or `package.module` for the module itself.
        field: of the spec, for errors.
        name: what the user wrote, where that is not the path.

    Raises:
        SpecError: it cannot be imported.
    """
    module, _, attribute = path.partition(":")
    try:
        found = importlib.import_module(module)
        for part in filter(None, attribute.split(".")):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"{field}: {name or path!r} cannot be imported: {error}; is its module installed on every "
            "host, or in a folder of PYTHONPATH?"
        ) from None
    return found
