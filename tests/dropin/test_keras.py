"""Keras and its callbacks on 2 real ranks against one process; see the `keras_*` files."""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path

import pytest

from tests.jobs.runs import launch

HERE = Path(__file__).parent
QUICK = (
    "keras_arguments",
    "keras_fitting",
    "keras_callbacks",
    "keras_misuse",
    "keras_names",
    "keras_sharding",
    "keras_loader",
    "keras_checkpoint",
    "keras_preemption",
)
SLOW = ("keras_optimizers",)


def checks(modules: tuple[str, ...]) -> list[str]:
    trees = [ast.parse((HERE / f"{module}.py").read_text(encoding="utf-8")) for module in modules]
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("check_")]


@functools.cache
def said(
    modules: tuple[str, ...], directory: Path, wire: str = "mpirun", ranks: int = 2
) -> list[dict[str, str]]:
    """What each rank says of each check, and of the launch."""
    results = directory / modules[0]
    names = [f"tests.dropin.{module}" for module in modules]
    # All checks of a job take long where the host has other things to do.
    done = launch(ranks, [str(HERE / "keras_worker.py"), str(results), *names], wire, timeout=1800)
    files = [Path(f"{results}.{rank}") for rank in range(ranks)]
    found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    return [{"launch": done.stdout[-5000:]} | each for each in found]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keras")


@pytest.mark.parametrize("check", checks(QUICK))
def test_on_two_ranks(check: str, directory: Path) -> None:
    for rank, found in enumerate(said(QUICK, directory)):
        assert found.get(check) == "", f"rank {rank}: {found.get(check) or found.get('launch')}"


@pytest.mark.slow
@pytest.mark.parametrize("check", checks(SLOW))
def test_slowly_on_two_ranks(check: str, directory: Path) -> None:
    for rank, found in enumerate(said(SLOW, directory)):
        assert found.get(check) == "", f"rank {rank}: {found.get(check) or found.get('launch')}"
