"""Names of a package that import a framework when they are used, and not when the package is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from inspect import getmodule, ismodule
from types import ModuleType
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
            said = f"neither {self.package} nor {self.others} has a {name!r}"
            if self.others.startswith("hvdtrain."):
                # One of ours has said it already, of itself, and may know what to use instead.
                said = str(error).replace(self.others, self.package, 1)
            raise AttributeError(said) from None
        return vars(sys.modules[self.package]).setdefault(name, found)

    def listed(self) -> list[str]:
        """Every public name there is."""
        found = {*self.ours, *self.modules, *public_names(import_module(self.others))}
        return sorted(found - set(self.gone))

    def _has_module(self, name: str) -> bool:
        is_package = hasattr(sys.modules[self.package], "__path__")
        return is_package and find_spec(f"{self.package}.{name}") is not None


def public_names(module: ModuleType) -> list[str]:
    """Names of a module that a program may use: no modules, and nothing that it has of other libraries."""
    if isinstance(names := vars(module).get("_NAMES"), LazyNames):
        return sorted({*names.listed()}.difference(names.modules))
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    found = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return sorted(name for name, value in found.items() if not ismodule(value) and _is_own(value))


def _is_own(value: Any) -> bool:
    home = getmodule(value)
    return home is None or home.__name__.partition(".")[0] in ("horovod", "hvdtrain")
