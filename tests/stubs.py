"""Writes the stub files of the packages whose names are found when they are used: `python -m tests.stubs`.

Editors and type checkers read them: they do not run a module's `__getattr__`. Each package is looked at in a
process of its own, with its real names and the signatures of the installed Horovod.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("hvdtrain.torch", "hvdtrain.tensorflow", "hvdtrain.keras")
# Modules among the names that programs use.
_MODULES = ("elastic", "callbacks")
_NUMBERS = ("rank", "size", "local_rank", "local_size", "cross_rank", "cross_size")
_ANSWERS = ("_built", "_enabled", "_supported", "is_initialized")
_HEAD = '"""Made by `make stubs` from the real names: not to be edited."""\n\nfrom typing import Any\n\n'


def stub_file(package: str) -> Path:
    """Where a package's stub lies."""
    return ROOT / package.replace(".", "/") / "__init__.pyi"


def stub_text(package: str) -> str:
    """What it should hold, found in a fresh process and formatted."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.stubs", package], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode:
        raise RuntimeError(found.stderr)
    text = found.stdout[found.stdout.index(_HEAD) :]
    for step in (["check", "--select", "I", "--fix", "--quiet"], ["format"]):
        command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", str(stub_file(package)), "-"]
        done = subprocess.run(command, input=text, cwd=ROOT, capture_output=True, text=True, check=True)
        text = done.stdout
    return text


def _describe(package: ModuleType) -> Iterator[str]:
    """One declaration a public name; imports, which have types of their own, first."""
    names = {name: getattr(package, name, None) for name in dir(package) if not name.startswith("_")}
    ours = package._NAMES.ours
    declared = []
    for name, value in sorted(names.items()):
        if name in ours:
            yield f"from {ours[name]} import {name} as {name}"
        elif inspect.ismodule(value):
            if name in _MODULES:
                yield f"from {value.__name__.rpartition('.')[0]} import {name} as {name}"
        elif isinstance(value, int):
            declared.append(f"{name}: int")
        elif str(getattr(value, "__module__", "")).startswith("hvdtrain."):
            yield f"from {value.__module__} import {name} as {name}"
        elif str(getattr(value, "__module__", "")).startswith("horovod."):
            if inspect.isroutine(value):
                declared.append(_routine(name, value))
            elif inspect.isclass(value):
                yield f"from {value.__module__} import {value.__qualname__} as {name}"
            else:
                declared.append(f"{name}: Any")
    yield ""
    yield from declared


def _routine(name: str, value: Any) -> str:
    parameters = [
        p.replace(annotation=Any, default=p.default if p.default is p.empty else _Dots())
        for p in inspect.signature(value).parameters.values()
    ]
    numbers, answers = name in _NUMBERS, name.endswith(_ANSWERS)
    returns = "int" if numbers else "bool" if answers else "Any"
    return f"def {name}{inspect.Signature(parameters)} -> {returns}: ...".replace("typing.Any", "Any")


class _Dots:
    def __repr__(self) -> str:
        return "..."


if __name__ == "__main__":
    if sys.argv[1:]:
        print(_HEAD + "\n".join(_describe(import_module(sys.argv[1]))))
    else:
        for one in PACKAGES:
            stub_file(one).write_text(stub_text(one), encoding="utf-8")
            print(f"wrote {stub_file(one).relative_to(ROOT)}")
