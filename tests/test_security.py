"""No source file of ours runs code that it reads, and docs/security.md knows every socket that listens."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = [
    path
    for folder in ("hvdtrain", "torch_jobs", "tf_jobs", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
CODE_READERS = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {
    "eval", "exec", "torch.load", "yaml.full_load", "yaml.unsafe_load", "yaml.full_load_all", "yaml.load_all",
    "yaml.unsafe_load_all", "pd.read_pickle", "keras.config.enable_unsafe_deserialization",
}  # fmt: skip
UNSAFE_LOADERS = {"Loader", "FullLoader", "UnsafeLoader", "CLoader", "CFullLoader", "CUnsafeLoader"}
# Where our programs listen: why each is no door is in docs/security.md.
LISTENING = {
    "hvdtrain/core/run/stall.py": "StallGuard",
    "hvdtrain/engine/patches/proof.py": "RendezvousServer",
}


def name_of(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute; what is in front of a call's result is left out."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}".lstrip(".")
    return node.id if isinstance(node, ast.Name) else ""


def faults(text: str) -> Iterator[str]:
    """What runs code that is read, by the line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            for module in modules:
                if module.partition(".")[0] in CODE_READERS:
                    yield f"{node.lineno}: imports {module}"
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in CALLS and not (name == "eval" and isinstance(node.func, ast.Attribute)):
                yield f"{node.lineno}: {name}"
            if name == "yaml.load":
                loader = given.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
                if loader is None or name_of(loader).rpartition(".")[2] in UNSAFE_LOADERS:
                    yield f"{node.lineno}: yaml.load"
            for argument, value in (("allow_pickle", False), ("weights_only", True), ("safe_mode", True)):
                found = given.get(argument)
                if found is not None and getattr(found, "value", None) is not value:
                    yield f"{node.lineno}: {argument}"
            if name.rpartition(".")[2] == "YAML" and getattr(given.get("typ"), "value", "safe") == "unsafe":
                yield f"{node.lineno}: {name}"


def listens(text: str) -> bool:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and name_of(node.func).rpartition(".")[2] in (
            "create_server",
            "listen",
        ):
            return True
        if isinstance(node, ast.ClassDef) and any(
            name_of(base).endswith(("HTTPServer", "TCPServer")) for base in node.bases
        ):
            return True
    return False


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval(x)",
        "exec(x)",
        "import torch\ntorch.load(p)",
        "np.load(p, allow_pickle=True)",
        "np.load(p, allow_pickle=x)",
        "torch.load(p, weights_only=False)",
        "yaml.load(t)",
        "yaml.load(t, Loader=yaml.FullLoader)",
        "yaml.load(t, yaml.Loader)",
        "YAML(typ='unsafe').load(t)",
        "keras.models.load_model(p, safe_mode=False)",
    ],
)
def test_the_search_finds_what_it_is_for(bad: str) -> None:
    assert list(faults(bad))


@pytest.mark.parametrize(
    "good",
    [
        "model.eval()",
        "np.load(p)",
        "yaml.load(t, Loader=MySafeLoader)",
        "yaml.safe_load(t)",
        "YAML(typ='safe').load(t)",
        "json.load(f)",
    ],
)
def test_the_search_leaves_the_rest_alone(good: str) -> None:
    assert not list(faults(good))


# `python -m hvdtrain.horovod script.py` runs the program that its user names.
RUNS_PROGRAMS = {"hvdtrain/core/dropin/program.py": ["exec"]}


def test_nothing_of_ours_runs_what_it_reads() -> None:
    assert len(OURS) > 100
    found = {
        str(path.relative_to(ROOT)): list(faults(path.read_text()))
        for path in OURS
        if "tests" not in path.parts
    }
    without_lines = {name: [line.partition(": ")[2] for line in lines] for name, lines in found.items()}
    assert {name: whats for name, whats in without_lines.items() if whats} == RUNS_PROGRAMS


def test_every_socket_that_listens_is_in_the_table() -> None:
    package = [path for path in OURS if path.is_relative_to(ROOT / "hvdtrain")]
    found = {str(path.relative_to(ROOT)) for path in package if listens(path.read_text())}
    assert found == set(LISTENING)
    page = (ROOT / "docs" / "security.md").read_text()
    assert all(f"`{name}`" in page for name in LISTENING.values())
