"""Where built wheels are kept, and what the installed Horovod was built from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from hvdtrain.core.errors import EngineError
from hvdtrain.core.process.paths import cache_root
from hvdtrain.engine.edits import RECORD_FILE, edits_for, recipe_digest
from hvdtrain.engine.versions import (
    Versions,
    distribution_version,
    package_dir,
    tensorflow_version,
    torch_version,
)
from hvdtrain.engine.wire_edits import WIRE_TYPES

_BUILD = "run `hvdtrain engine build --install`"


@dataclass(frozen=True)
class Installed:
    """The Horovod that `import horovod` would find.

    Attributes:
        path: its package folder.
        key: the build it came from; None when it was not built by hvdtrain.
        built_for: framework versions by `torch` and `tensorflow`, as recorded by Horovod's own build.
        wire_types: dtypes its wire has beyond those of Horovod's releases, by NumPy's names.
        closed: vulnerabilities of Horovod's releases that it does not have.
        version: as its metadata say it, such as `0.28.1+hvdtrain.1`; None without metadata.
    """

    path: Path
    key: str | None
    built_for: dict[str, str]
    wire_types: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    version: str | None = None


def cache_dir() -> Path:
    """The folder of builds: engine/ in the folder of all caches (see `cache_root`)."""
    return cache_root() / "engine"


def build_key(versions: Versions) -> str:
    """The name of the build for these versions, today's edits included."""
    return versions.key(recipe_digest(edits_for(versions)))


def cached_wheel(key: str) -> Path | None:
    """The finished wheel of that build, or None."""
    return next(iter(sorted((cache_dir() / key).glob("horovod-*.whl"))), None)


def installed_horovod() -> Installed | None:
    """What is installed beside the running interpreter, found without importing it; None when nothing is."""
    folder = package_dir("horovod")
    if folder is None:
        return None
    names = {"pytorch": "torch", "tensorflow": "tensorflow"}
    metadata = _read_json(folder / "metadata.json")
    built_for = {names[name]: version for name, version in metadata.items() if name in names}
    record = _read_json(folder / RECORD_FILE)
    return Installed(
        folder,
        record.get("key"),
        built_for,
        tuple(record.get("wire_types", ())),
        tuple(record.get("closed", ())),
        distribution_version("horovod"),
    )


def wire_types() -> frozenset[str]:
    """The dtypes that Horovod's wire has beyond those of its releases, by NumPy's names.

    Where none is installed, those of the one that a build would install.
    """
    installed = installed_horovod()
    return frozenset(WIRE_TYPES if installed is None else installed.wire_types)


def misfits(installed: Installed, versions: Versions) -> list[str]:
    """Says for each installed framework how this Horovod does not fit it; nothing when it fits.

    Horovod is compiled against private parts of a framework, so only the very same version is a fit.
    """
    found = []
    for name in versions.frameworks:
        built, now = installed.built_for.get(name), getattr(versions, name)
        if built is None:
            found.append(f"built without {name}, and {name} {now} is installed")
        elif Version(built) != Version(now):
            found.append(f"built for {name} {built}, and {now} is installed")
    return found


def require_fit(framework: str) -> None:
    """Refuse to start a job with a Horovod that would crash when it is imported.

    Args:
        framework: `torch` or `tensorflow`.

    Raises:
        EngineError: the framework or Horovod is missing, or Horovod was compiled for another version.
    """
    now = {"torch": torch_version, "tensorflow": tensorflow_version}[framework]()
    installed = installed_horovod()
    if now is None:
        raise EngineError(f"{framework} is not installed: pip install 'hvdtrain[{framework}]'")
    if installed is None:
        raise EngineError(f"Horovod is not installed: {_BUILD}")
    built = installed.built_for.get(framework)
    # Without a record of what it was built for, nothing is known against it.
    if installed.built_for and built is None:
        raise EngineError(f"the installed Horovod was built without {framework}: {_BUILD}")
    if built is not None and Version(built) != Version(now):
        raise EngineError(f"Horovod was built for {framework} {built}, but {now} is installed: {_BUILD}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
