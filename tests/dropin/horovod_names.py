"""Writes docs/horovod-names.md: every public name of Horovod's, and what it is here.

python -m tests.dropin.horovod_names
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from hvdtrain.core.dropin.program import TWINS
from hvdtrain.core.lazy import public_names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "horovod-names.md"
HEAD = """# Horovod's names

Every public name of Horovod 0.28.1's packages for PyTorch, TensorFlow and Keras, and what it is in the
package of hvdtrain that takes its place. *Ours* is written for hvdtrain and takes Horovod's arguments;
*Horovod's own* is the very same object. What changes with a name is in [from-horovod.md](from-horovod.md).
This page is written by `python -m tests.dropin.horovod_names`, and a test keeps it true.
"""


def page() -> str:
    """The whole page."""
    return HEAD + "".join(section(theirs, ours) for theirs, ours in TWINS.items())


def section(theirs: str, ours: str) -> str:
    """One module's table."""
    found = import_module(theirs)
    twin = import_module(ours)
    rows = [f"| `{name}` | {said(name, getattr(found, name), twin)} |" for name in public(found)]
    return f"\n## `{theirs}` → `{ours}`\n\n| name | here |\n|---|---|\n" + "\n".join(rows) + "\n"


def public(module: ModuleType) -> list[str]:
    """Names that a program may use: none of other libraries, and no module that is Horovod's own affair."""
    modules = [name for name, value in vars(module).items() if getattr(value, "__name__", "") in TWINS]
    return sorted({*public_names(module), *modules})


def said(name: str, theirs: Any, twin: ModuleType) -> str:
    """What a name is in the package that takes Horovod's place."""
    try:
        ours = getattr(twin, name)
    except AttributeError as error:
        return "not here" + ": ".join(["", *str(error).split(": ", 1)[1:]])
    if isinstance(ours, ModuleType):
        return f"[`{ours.__name__}`](#{anchor(theirs.__name__, ours.__name__)})"
    if ours is theirs or not getattr(ours, "__module__", "hvdtrain").startswith("hvdtrain"):
        return "Horovod's own"
    if not isinstance(ours, type) and not callable(ours):
        return "Horovod's own"
    return f"ours: {first_sentence(ours)}"


def first_sentence(value: Any) -> str:
    """Of a docstring, on one line."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return text.replace("|", "\\|")


def anchor(theirs: str, ours: str) -> str:
    """Where a section is."""
    return f"{theirs} → {ours}".lower().replace(".", "").replace("→", "").replace(" ", "-")


if __name__ == "__main__":
    text = page()
    if "--print" in sys.argv:
        print(text, end="")
    else:
        PAGE.write_text(text, encoding="utf-8")
