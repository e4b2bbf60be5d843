"""The torch wrapper and what goes with it, on 2 real ranks against one process; see the `torch_*` files."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.jobs.runs import launch

HERE = Path(__file__).parent
MODULES = (
    "torch_arguments",
    "torch_loops",
    "torch_nested",
    "torch_changes",
    "torch_parameters",
    "torch_around",
    "torch_names",
    "torch_misuse",
    "torch_sharding",
    "torch_loader",
    "torch_checkpoint",
    "torch_preemption",
)


def checks(module: str) -> list[str]:
    tree = ast.parse((HERE / f"{module}.py").read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if name.startswith("check_")]


Results = list[dict[str, str | None]]


def said(path: Path, names: Iterable[str], wire: str = "mpirun", ranks: int = 2) -> Results:
    """What each rank says of each check."""
    modules = [f"tests.dropin.{name}" for name in names]
    done = launch(ranks, [str(HERE / "torch_worker.py"), str(path), *modules], wire)
    files = [Path(f"{path}.{rank}") for rank in range(ranks)]
    assert all(file.exists() for file in files), done.stdout[-5000:]
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return said(tmp_path_factory.mktemp("torch") / "results", MODULES)


@pytest.mark.parametrize("check", [name for module in MODULES for name in checks(module)])
def test_on_two_ranks(check: str, results: Results) -> None:
    passed(check, results)


def passed(check: str, results: Results) -> None:
    for rank, found in enumerate(results):
        assert check in found, f"rank {rank} did not come so far"
        assert found[check] is None, f"rank {rank}: {found[check]}"
