"""Names of a package that import a framework when they are used, and not when the package is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True)
class LazyNames:
    """What a package's `__getattr__` and `__dir__` answer.

    Attributes:
        package: its name.
        ours: the module of each name that is ours.
        others: the module that has all other names.
        check: called before either is imported; raises where that would crash.
    """

    package: str
    ours: Mapping[str, str]
    others: str
    check: Callable[[], None]

    def find(self, name: str) -> Any:
        """The value of a name, kept in the package from then on.

        Raises:
            AttributeError: nobody has it, or the import system asks for a submodule.
        """
        # Tools that look a module over, and imports of submodules, must not import a framework by it.
        if name.startswith("_") or find_spec(f"{self.package}.{name}"):
            raise AttributeError(name)
        self.check()
        try:
            found = getattr(import_module(self.ours.get(name, self.others)), name)
        except AttributeError:
            raise AttributeError(f"neither {self.package} nor {self.others} has a {name!r}") from None
        return vars(sys.modules[self.package]).setdefault(name, found)

    def listed(self) -> list[str]:
        """Every name there is."""
        return sorted({*vars(sys.modules[self.package]), *self.ours, *dir(import_module(self.others))})
