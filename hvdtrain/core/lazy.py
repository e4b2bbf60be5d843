"""Names of a package that import a framework when they are used, and not when the package is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
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
        modules: submodules that are imported when their name is used.
        gone: what to use instead of a name that `others` has and that cannot work.
    """

    package: str
    ours: Mapping[str, str]
    others: str
    check: Callable[[], None]
    modules: Collection[str] = ()
    gone: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Any:
        """The value of a name, kept in the package from then on.

        Raises:
            AttributeError: nobody has it, or the import system asks for a submodule.
        """
        # Tools that look a module over, and imports of submodules, must not import a framework by it.
        if name.startswith("_") or (name not in self.modules and self._has_module(name)):
            raise AttributeError(name)
        if name in self.gone:
            raise AttributeError(f"{self.package}.{name}: {self.gone[name]}")
        self.check()
        if name in self.modules:
            return import_module(f"{self.package}.{name}")
        try:
            found = getattr(import_module(self.ours.get(name, self.others)), name)
        except AttributeError as error:
            # One of ours has said it already, and may know what to use instead.
            ours = self.others.startswith("hvdtrain.")
            said = str(error) if ours else f"neither {self.package} nor {self.others} has a {name!r}"
            raise AttributeError(said) from None
        return vars(sys.modules[self.package]).setdefault(name, found)

    def listed(self) -> list[str]:
        """Every name there is."""
        found = {
            *vars(sys.modules[self.package]),
            *self.ours,
            *self.modules,
            *dir(import_module(self.others)),
        }
        return sorted(found - set(self.gone))

    def _has_module(self, name: str) -> bool:
        is_package = hasattr(sys.modules[self.package], "__path__")
        return is_package and find_spec(f"{self.package}.{name}") is not None
