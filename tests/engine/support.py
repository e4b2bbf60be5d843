"""Environments made by hand, and real processes, for the engine's tests."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

import hvdtrain

REPOSITORY = Path(hvdtrain.__file__).parent.parent


@dataclass(frozen=True)
class Environment:
    """A Python environment with hvdtrain's engine and what a test put beside it."""

    python: Path
    site: Path

    def add(self, name: str, version: str, **modules: str) -> Path:
        """Puts a distribution there: `modules` are file names (`__` for a dot) and their text."""
        info = self.site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        folder = self.site / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        for module, text in modules.items():
            (folder / module.replace("__", ".")).write_text(text)
        return folder

    def run(self, code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a line of Python in it."""
        command = [self.python, "-c", code, *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.site, env=os.environ | env
        )


def closure(names: set[str]) -> set[str]:
    """The distributions, and whatever they need."""
    found: set[str] = set()
    while names:
        name = names.pop()
        found.add(name)
        required = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
        wanted = {r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})}
        names |= wanted - found
    return found


def link(name: str, site: Path) -> None:
    """Makes an installed distribution importable from another environment."""
    distribution = importlib.metadata.distribution(name)
    tops = {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that is expected to end well, and shows all it said when it does not."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=os.environ | {"PATH": path} | env
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done
