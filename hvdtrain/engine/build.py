"""Builds a Horovod wheel for the installed frameworks, keeps it, and installs it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hvdtrain.core.errors import EngineError
from hvdtrain.engine.cache import build_key, cache_dir, cached_wheel, installed_horovod
from hvdtrain.engine.compiling import build_environment, compile_wheel, load_check
from hvdtrain.engine.edits import RECORD_FILE, apply_edits, edits_for
from hvdtrain.engine.security_edits import CLOSED
from hvdtrain.engine.versions import HOROVOD_VERSION, Versions
from hvdtrain.engine.wire_edits import WIRE_TYPES

SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wheel:
    """A built wheel.

    Attributes:
        path: where it lies.
        key: its name in the cache.
        built_now: False when it was taken from the cache.
    """

    path: Path
    key: str
    built_now: bool


def build(versions: Versions, say: Say, sdist: Path | None = None, force: bool = False) -> Wheel:
    """Gives the wheel for these versions, built when it is not in the cache.

    Args:
        versions: what to build for; see `find_versions`.
        say: shown the progress, a line at a time.
        sdist: Horovod's source distribution, when it shall not be fetched with pip.
        force: build even when the cache has it.

    Raises:
        EngineError: no framework, a tool or the sources are missing, an edit does not fit, or it fails.
    """
    key = build_key(versions)
    wheel = cached_wheel(key)
    if wheel and not force:
        return Wheel(wheel, key, built_now=False)
    _check_possible(versions)
    say(f"building Horovod {HOROVOD_VERSION} for {_describe(versions)}")
    with _workspace() as work:
        source = unpack(sdist or fetch_sdist(), work)
        edits = edits_for(versions)
        apply_edits(edits, source)
        record = {
            "key": key,
            "versions": asdict(versions),
            "wire_types": WIRE_TYPES,
            "closed": CLOSED,
            "edits": {edit.name: edit.why for edit in edits},
        }
        (source / "horovod" / RECORD_FILE).write_text(json.dumps(record, indent=1))
        log = cache_dir() / "logs" / f"{key}.log"
        built = compile_wheel(source, work / "wheel", build_environment(versions), log, say)
        load_check(built, versions.frameworks, work / "loaded")
        return Wheel(_keep(built, key), key, built_now=True)


def install(wheel: Wheel, force: bool = False) -> bool:
    """Installs a wheel into the running interpreter's environment, unless that build is there already.

    Returns:
        Whether anything was installed.

    Raises:
        EngineError: pip refuses.
    """
    installed = installed_horovod()
    if installed and installed.key == wheel.key and not (force or wheel.built_now):
        return False
    _pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel.path))
    return True


def fetch_sdist() -> Path:
    """The pinned source distribution, fetched with pip the first time.

    Raises:
        EngineError: pip cannot fetch it, or it is not the pinned one.
    """
    name = f"horovod-{HOROVOD_VERSION}.tar.gz"
    kept = cache_dir() / name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix="fetch-") as folder:
            _pip(
                *("download", "--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--dest", folder),
                f"horovod=={HOROVOD_VERSION}",
            )
            check_sdist(Path(folder, name))
            Path(folder, name).replace(kept)
    return kept


def check_sdist(sdist: Path) -> None:
    """Refuses any file but the pinned source distribution.

    Raises:
        EngineError: it is missing, or its SHA-256 is another.
    """
    if not sdist.is_file():
        raise EngineError(
            f"{sdist}: no such file; expected the source distribution of Horovod {HOROVOD_VERSION}"
        )
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise EngineError(
            f"{sdist}: SHA-256 is {found}, expected {SDIST_SHA256}; remove it and fetch it again"
        )


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpacks the pinned source distribution.

    Returns:
        The top folder of the sources.

    Raises:
        EngineError: it is not the pinned one.
    """
    check_sdist(sdist)
    # No extraction filter: Python 3.11.2, which is Debian 12's, has none, and the content is pinned.
    shutil.unpack_archive(sdist, folder, format="gztar")
    return folder / f"horovod-{HOROVOD_VERSION}"


def _check_possible(versions: Versions) -> None:
    if not versions.frameworks:
        raise EngineError(
            "neither torch nor TensorFlow is installed beside this Python, and Horovod is compiled against "
            "them: pip install 'hvdtrain[torch]', 'hvdtrain[tensorflow]' or 'hvdtrain[all]' first"
        )
    missing = [tool for tool in ("g++", "make", "cmake") if not shutil.which(tool)]
    if missing:
        raise EngineError(
            f"building Horovod needs {', '.join(missing)}: as root, apt-get install {' '.join(missing)}"
        )


def _describe(versions: Versions) -> str:
    parts = [f"{name} {getattr(versions, name)}" for name in versions.frameworks] + ["Gloo"]
    parts += [versions.mpi] if versions.mpi else []
    parts += [f"NCCL {versions.nccl} (CUDA {versions.nvcc})"] if versions.with_nccl else []
    return ", ".join(parts)


def _keep(built: Path, key: str) -> Path:
    """Moves the wheel to its place in one step, so that nobody sees half of it."""
    place = cache_dir() / key
    place.mkdir(parents=True, exist_ok=True)
    return built.replace(place / built.name)


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder on the cache's file system, so that finished files can be renamed into it."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="build-") as folder:
        yield Path(folder)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=os.environ
    )
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise EngineError(f"pip {' '.join(arguments)} failed:\n{last}")
