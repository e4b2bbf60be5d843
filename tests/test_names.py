"""What is public is used by somebody: a name that only tests know is dead, or was meant to be used.

Read from source. A name counts as used where the package, a job, a benchmark or an example refers to it
outside of its own definition, or where the documentation shows it to users.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USERS = ("hvdtrain", "torch_jobs", "tf_jobs", "benchmarks", "examples")
# Horovod's, for the programs that call them.
CALLED_BY_PROGRAMS = {"set_backward_passes_per_step"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_every_public_name_is_used() -> None:
    code = Counter(name for folder in USERS for file in sources(folder) for name in references(parse(file)))
    pages = [*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    told = {word for page in pages for word in re.findall(r"\w+", page.read_text(encoding="utf-8"))}
    dead = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in sources("hvdtrain")
        for name in definitions(parse(file))
        if not code[name] and name not in told | CALLED_BY_PROGRAMS
    ]
    assert not dead, dead


def test_the_rule_sees_what_it_should() -> None:
    tree = ast.parse(
        "class Kept:\n    field: int = 1\n    def used(self): self.set = 1\n    def _own(self): ...\n"
        "def alone(): return Kept().used()\nLIMIT = 3\n"
    )
    assert set(definitions(tree)) == {"Kept", "field", "used", "set", "alone", "LIMIT"}
    assert set(references(tree)) == {"Kept", "used", "int", "self"}


def definitions(tree: ast.Module) -> Iterator[str]:
    """Public names of a module, of its classes, and what methods set on `self`."""
    for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        if isinstance(scope, ast.ClassDef) and _overrides(scope):
            continue
        found = {name for node in scope.body for name in _bound(node)}
        if isinstance(scope, ast.ClassDef):
            found |= {n.attr for n in ast.walk(scope) if _is_set_on_self(n)}  # type: ignore[attr-defined]
        yield from (name for name in sorted(found) if not name.startswith("_"))


def references(tree: ast.Module) -> Iterator[str]:
    """Names that are read, imported, passed by keyword, or spelt as a text (`getattr`, lazy exports)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.value


def _overrides(scope: ast.ClassDef) -> bool:
    """Whether others call its methods: a library's class, by whatever names it has."""
    return bool(scope.bases)


def _bound(node: ast.stmt) -> list[str]:
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _is_set_on_self(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def sources(folder: str) -> list[Path]:
    # What the engine adds to Horovod is used there.
    return sorted(file for file in (ROOT / folder).rglob("*.py") if "patches" not in file.parts)


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
