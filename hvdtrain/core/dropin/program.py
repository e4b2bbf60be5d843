"""Programs written for Horovod: what they import as Horovod is hvdtrain; our own code has the real one."""

from __future__ import annotations

import builtins
import importlib
import io
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

_USAGE = "usage: python -m hvdtrain.horovod (SCRIPT | -m MODULE) [ARGUMENT...]"
# What stands in for Horovod's packages.
TWINS = {
    "horovod.torch": "hvdtrain.torch",
    "horovod.torch.elastic": "hvdtrain.torch.elastic",
    "horovod.tensorflow": "hvdtrain.tensorflow",
    "horovod.tensorflow.elastic": "hvdtrain.tensorflow.elastic",
    "horovod.tensorflow.keras": "hvdtrain.tensorflow.keras",
    "horovod.tensorflow.keras.callbacks": "hvdtrain.tensorflow.keras.callbacks",
    "horovod.tensorflow.keras.elastic": "hvdtrain.tensorflow.keras.elastic",
    "horovod.keras": "hvdtrain.keras",
    "horovod.keras.callbacks": "hvdtrain.keras.callbacks",
    "horovod.keras.elastic": "hvdtrain.keras.elastic",
}
# Whose imports are left alone: both have to reach the real Horovod.
_INSIDE = ("hvdtrain", "horovod")
# Tells a worker process which program it belongs to; Python tells it only ours.
_PROGRAM = "HVDTRAIN_HOROVOD_PROGRAM"

_plain_import = builtins.__import__
_stands: dict[str, ModuleType] = {}


def run(namespace: dict[str, Any], arguments: Sequence[str]) -> None:
    """Run a program in the main module, as `python SCRIPT` does.

    Args:
        namespace: of the main module; cleared.
        arguments: the script's path or `-m` and a module's name, and the program's own arguments.
    """
    if namespace["__name__"] == "__mp_main__":
        stand_in()
        if _PROGRAM in os.environ:
            _execute(namespace, Path(os.environ[_PROGRAM]))
        return
    if not arguments or arguments[0] in ("-h", "--help") or list(arguments) == ["-m"]:
        print(_USAGE, file=sys.stderr)
        raise SystemExit(0 if arguments and arguments[0] in ("-h", "--help") else 2)
    if arguments[0] == "-m":
        stand_in()
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    script = Path(arguments[0])
    if not script.is_file():
        raise SystemExit(f"python -m hvdtrain.horovod: there is no file {str(script)!r}\n{_USAGE}")
    stand_in()
    sys.argv = list(arguments)
    # In place of the working directory, which `python -m` has put there.
    sys.path[0] = str(script.resolve().parent)
    os.environ[_PROGRAM] = str(script.resolve())
    _execute(namespace, script)


def stand_in() -> None:
    """From now on `import horovod...` outside of hvdtrain and Horovod gives what stands in for it."""
    builtins.__import__ = _import
    importlib.import_module = _import_module


def _execute(namespace: dict[str, Any], script: Path) -> None:
    kept = {key: namespace[key] for key in ("__name__", "__builtins__", "__spec__")}
    with io.open_code(str(script)) as file:
        code = compile(file.read(), str(script), "exec")
    namespace.clear()
    namespace.update(kept, __file__=str(script), __doc__=None, __package__=None, __loader__=None)
    exec(code, namespace)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> ModuleType:
    root = name.partition(".")[0]
    if level or root not in ("horovod", "keras", "tensorflow"):
        return _plain_import(name, globals, locals, fromlist or (), level)
    caller = str((globals or {}).get("__name__", "")).partition(".")[0]
    if root != "horovod":
        _meet_keras(name, caller)
    elif caller not in _INSIDE:
        found = _given(name)
        return found if fromlist else _given("horovod")
    return _plain_import(name, globals, locals, fromlist or (), level)


def _import_module(name: str, package: str | None = None) -> ModuleType:
    caller = str(sys._getframe(1).f_globals.get("__name__", "")).partition(".")[0]
    if name.partition(".")[0] == "horovod" and caller not in _INSIDE:
        return _given(name)
    return import_module(name, package)


def _given(name: str) -> ModuleType:
    """What a program gets for a module of Horovod's.

    Raises:
        ModuleNotFoundError: Horovod has no such module.
    """
    if name in TWINS:
        if not name.startswith("horovod.torch"):
            _teach_keras()
        return import_module(TWINS[name])
    real = import_module(name)
    if name != "horovod" and name.rpartition(".")[0] not in TWINS:
        return real
    return _stands.setdefault(name, _Stand(real))


class _Stand(ModuleType):
    """A module of Horovod's whose names are ours where its package has them as ours."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__, real.__doc__)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        inner = f"{self.__name__}.{name}"
        if inner in TWINS:
            return _given(inner)
        twin = (
            import_module(TWINS[package]) if (package := self.__name__.rpartition(".")[0]) in TWINS else None
        )
        if twin is not None and name in twin._NAMES.ours:
            return getattr(twin, name)
        if hasattr(self._real, name) or name.startswith("_"):
            return getattr(self._real, name)
        try:
            return _given(inner)
        except ModuleNotFoundError as error:
            if error.name != inner:
                raise
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None


def _meet_keras(name: str, caller: str) -> None:
    """Keras is about to be imported by the program, or by a library of its."""
    outside = caller not in (*_INSIDE, "keras", "tensorflow")
    if outside and name.startswith(("keras", "tensorflow.keras")):
        _teach_keras()


_teaching = False


def _teach_keras() -> None:
    """Let Keras 3 take what programs have of Keras 2; does nothing where Keras is not on TensorFlow."""
    global _teaching  # noqa: PLW0603
    if _teaching:
        return
    _teaching = True
    import_module("hvdtrain.tensorflow")
    if import_module("keras").backend.backend() == "tensorflow":
        import_module("hvdtrain.keras.keras2").bridge()
