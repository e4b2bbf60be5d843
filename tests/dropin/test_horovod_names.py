"""The pages that list Horovod's names and what Keras 2 had say what the code does."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_names_is_what_its_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.dropin.horovod_names", "--print"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (ROOT / "docs" / "horovod-names.md").read_text(encoding="utf-8")
    assert page == done.stdout, "write it anew: python -m tests.dropin.horovod_names"


def test_every_habit_of_keras_2_is_listed() -> None:
    tree = ast.parse((ROOT / "hvdtrain" / "keras" / "keras2.py").read_text(encoding="utf-8"))
    instead = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INSTEAD"
    )
    page = (ROOT / "docs" / "from-horovod.md").read_text(encoding="utf-8")
    for written, other in instead.items():
        assert f"| `{written}` | {other} |" in page, written
