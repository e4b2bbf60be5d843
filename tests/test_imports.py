"""Import purity: the core and everything the command line starts with import no framework."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hvdtrain"
FRAMEWORKS = {"torch", "transformers", "tensorflow", "keras", "keras_hub", "horovod"}
# What makes a command slow to answer; a command imports them when it runs.
HEAVY = {"numpy", "pydantic", "matplotlib", "tokenizers", "safetensors", "tensorboard", "ruamel"}
HEAVY |= {"rich", "pygments", "markdown_it", "psutil", "packaging", "asyncio", "multiprocessing"}
COMMANDS = ("run", "demo", "parity", "simulate", "generate", "doctor", "engine", "validate", "plan", "schema")


def module_names(*packages: str) -> list[str]:
    """Dotted names of every module below the given folders of the package."""
    files = [file for package in packages for file in sorted((PACKAGE / package).rglob("*.py"))]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def python(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def top_level_modules_after(*modules: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter holds after importing the given ones."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    return set(python(code, *modules).split())


def test_the_package_imports_neither_a_framework_nor_anything_heavy() -> None:
    before = set(python("import sys; print(*{name.partition('.')[0] for name in sys.modules})").split())
    assert top_level_modules_after("hvdtrain") - before <= {"hvdtrain", "importlib", "warnings"}


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_drop_in_package_imports_its_framework_when_a_name_is_used(framework: str) -> None:
    found = top_level_modules_after(f"hvdtrain.{framework}")
    assert not found & {framework, "horovod", "keras", "numpy", "pydantic", "rich"}


def test_nothing_outside_the_adapters_imports_a_framework() -> None:
    names = [*module_names("core", "launch", "engine", "bench"), "hvdtrain.cli"]
    # probe.py is a program: `doctor` runs it in a process of its own, to try the frameworks there.
    names.remove("hvdtrain.engine.probe")
    assert not top_level_modules_after(*names) & FRAMEWORKS


@pytest.mark.parametrize(
    ("adapter", "stranger"),
    [("torch", {"tensorflow", "keras", "keras_hub"}), ("tensorflow", {"torch"})],
)
def test_an_adapter_imports_nothing_of_the_other(adapter: str, stranger: set[str]) -> None:
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sorted(name for name in sys.modules if name.startswith('hvdtrain.')))\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    ours, every = python(code, *module_names(adapter)).splitlines()
    other = {"torch": "tensorflow", "tensorflow": "torch"}[adapter]
    assert not [name for name in ours.split() if name.startswith(f"hvdtrain.{other}")]
    assert adapter in every.split()
    assert not set(every.split()) & stranger


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("core", {"torch", "tensorflow", "keras", "launch", "engine", "bench", "cli"}),
        ("torch", {"tensorflow", "keras", "launch", "engine", "bench", "cli"}),
        ("tensorflow", {"torch", "keras", "launch", "engine", "bench", "cli"}),
        ("keras", {"torch", "launch", "bench", "cli"}),
        ("launch", {"torch", "tensorflow", "keras", "bench", "cli"}),
        ("engine", {"torch", "tensorflow", "keras", "bench", "cli"}),
    ],
)
def test_imports_point_one_way(package: str, forbidden: set[str]) -> None:
    found = {
        (file.name, name)
        for file in (PACKAGE / package).rglob("*.py")
        for name in _imports(file)
        if name.startswith("hvdtrain.") and name.split(".")[1] in forbidden
    }
    # What a launcher or a program of the user's starts asks the engine about Horovod before it imports it.
    starts = {("job.py", "require_fit"), ("job.py", "wire_types")}
    starts |= {("__init__.py", "require_fit"), ("optimizer.py", "wire_types"), ("tape.py", "wire_types")}
    assert found <= {(file, f"hvdtrain.engine.cache.{name}") for file, name in starts}


@pytest.mark.parametrize(
    "command", [[], ["run"], ["plan"], ["generate"], ["simulate"], ["engine"], ["engine", "build"]]
)
def test_help_answers_without_what_makes_it_slow(command: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['hvdtrain', *{command}, '--help']\n"
        "from hvdtrain.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    )
    shown, _, modules = python(code).rpartition("MODULES")
    if not command:
        for name in COMMANDS:
            assert f"\n  {name} " in shown
    # What commands do is said whole, and what their code raises is not.
    assert "..." not in shown.replace("[ARGS]...", "")
    assert "Raises" not in shown
    # Typer itself reads a command's parameters with pydantic, where that is installed.
    allowed = {"pydantic"} if command else set()
    assert not set(modules.split()) & (FRAMEWORKS | HEAVY) - allowed


def test_no_imports_go_in_a_circle_not_even_those_for_types_alone() -> None:
    imports = {name: module_imports(tree) for name, tree in _package().items()}
    assert not (found := cycle(imports)), " imports ".join(found)


def test_the_rule_against_circles_sees_every_import_but_those_of_functions() -> None:
    modules = {
        "hvdtrain": "",
        "hvdtrain.a": "from hvdtrain import b",
        "hvdtrain.b": "if TYPE_CHECKING:\n    from hvdtrain.c import D",
        "hvdtrain.c": "class D:\n    import hvdtrain.a",
        "hvdtrain.lazy": "import hvdtrain.a\ndef f():\n    import hvdtrain.lazy.more",
        "hvdtrain.lazy.more": "from hvdtrain import lazy",
    }
    imports = {name: module_imports(ast.parse(code)) for name, code in modules.items()}
    (first, *_, last) = found = cycle(imports)
    assert first == last
    assert set(found) == {"hvdtrain.a", "hvdtrain.b", "hvdtrain.c"}
    assert not cycle({**imports, "hvdtrain.c": set()})


def module_imports(tree: ast.Module) -> set[str]:
    """Names that a module imports when it is imported, or for types alone; a function's own are left out."""
    found: set[str] = set()
    nodes: list[ast.AST] = [*tree.body]
    while nodes:
        node = nodes.pop()
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
            found |= set(_imported(node))
    return found


def cycle(imports: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, the last being the first again; empty when there are none.

    Args:
        imports: what each module imports: modules, or names in them.
    """
    followed: set[str] = set()

    def follow(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in followed:
            return []
        followed.add(module)
        for name in sorted(imports[module]):
            following = name if name in imports else name.rpartition(".")[0]
            if following in imports and following != module and (found := follow(following, [*path, module])):
                return found
        return []

    return next(filter(None, (follow(module, []) for module in sorted(imports))), [])


def _package() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name."""
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in PACKAGE.rglob("*.py")]
    files = {name.removesuffix(".__init__"): ROOT / (name.replace(".", "/") + ".py") for name in names}
    return {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in files.items()}


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{file}: relative import"
        yield from _imported(node)


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
