"""What the engine's tests share: the real sources of Horovod, and environments made by hand."""

from __future__ import annotations

import shutil
import venv
from pathlib import Path

import pytest

from hvdtrain.engine.build import fetch_sdist, unpack
from hvdtrain.engine.edits import EDITS
from tests.engine.support import REPOSITORY, Environment, closure, link


@pytest.fixture(scope="session")
def sdist() -> Path:
    """Horovod's real source distribution, from pip or from where the set-up left it."""
    return fetch_sdist()


@pytest.fixture(scope="session")
def untouched(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Horovod's sources, for reading."""
    return unpack(sdist, tmp_path_factory.mktemp("horovod"))


@pytest.fixture
def source(untouched: Path, tmp_path: Path) -> Path:
    """A fresh copy of those of Horovod's sources that any edit touches."""
    for name in {edit.file for edit in EDITS if edit.anchor is not None}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(untouched / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def bare(tmp_path: Path) -> Environment:
    """A virtual environment with what the commands import and no framework, no Horovod."""
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=False)
    site = next(folder.glob("lib/python3*/site-packages"))
    for name in closure({"typer", "rich", "psutil", "packaging"}):
        link(name, site)
    (site / "hvdtrain.pth").write_text(f"{REPOSITORY}\n")
    return Environment(folder / "bin" / "python", site)
