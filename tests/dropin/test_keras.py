"""Keras on two real ranks: what each group of checks says."""

from __future__ import annotations

import ast
import functools
import json
from pathlib import Path

import pytest

from tests.jobs.runs import launch

HERE = Path(__file__).parent
QUICK, SLOW = ("arguments", "fitting"), ("optimizers",)


def checks(group: str) -> list[str]:
    tree = ast.parse((HERE / f"keras_{group}.py").read_text(encoding="utf-8"))
    return [n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("check_")]


CASES = [
    pytest.param(group, check, marks=[pytest.mark.slow] if group in SLOW else [], id=f"{group}-{check[6:]}")
    for group in (*QUICK, *SLOW)
    for check in checks(group)
]


@functools.cache
def said(group: str, directory: Path) -> list[dict[str, str]]:
    """What every rank says of the group's checks, and of the launch."""
    done = launch(2, ["-m", "tests.dropin.keras_worker", str(directory), group])
    failed = "" if done.returncode == 0 else done.stdout[-5000:]
    files = [directory / f"{group}.{rank}.json" for rank in range(2)]
    return [{"launch": failed} | (json.loads(f.read_text()) if f.exists() else {}) for f in files]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keras")


@pytest.mark.parametrize(("group", "check"), CASES)
def test_on_two_ranks(group: str, check: str, directory: Path) -> None:
    for found in said(group, directory):
        assert found.get(check, found["launch"]) == ""
