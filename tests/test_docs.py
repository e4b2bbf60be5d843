"""The documentation says what the code does: fields, defaults, links, paths and commands."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic.fields import FieldInfo

from hvdtrain.cli import app
from hvdtrain.core.compression import POLICIES, Policy
from hvdtrain.core.families import FAMILIES
from hvdtrain.core.spec.job_spec import parse_spec, spec_class
from hvdtrain.core.spec.optimizer_sections import GroupSpec
from hvdtrain.core.spec.sections import Section
from hvdtrain.core.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SPEC_PAGE = (ROOT / "docs" / "spec.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def section_of(field: FieldInfo) -> type[Section] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


SECTIONS = {name: kind for name, field in spec_class().model_fields.items() if (kind := section_of(field))}
BY_FAMILY = {name: FAMILIES.find(name).ModelSpec for name in FAMILIES.builtin}
BY_TASK = {name: TASKS.find(name) for name in TASKS.builtin}
# The headings under which the fields of each section are.
TABLES: dict[tuple[str, ...], type[Section]] = {
    ("top level",): spec_class(),
    **{(name,): kind for name, kind in SECTIONS.items() if name not in ("model", "data", "task")},
    ("groups",): GroupSpec,
    **{(name,): kind for name, kind in BY_FAMILY.items()},
    **{
        (name,): kind
        for family in BY_FAMILY.values()
        for name, field in family.model_fields.items()
        if (kind := section_of(field))
    },
    **{(name if name != "custom" else "custom task",): task.TaskSpec for name, task in BY_TASK.items()},
    ("data", "data of masked_lm"): BY_TASK["masked_lm"].DataSpec,
    ("data",): BY_TASK["causal_lm"].DataSpec,
    ("data of image_classification",): BY_TASK["image_classification"].DataSpec,
    ("data of text_classification",): BY_TASK["text_classification"].DataSpec,
    ("data of custom",): BY_TASK["custom"].DataSpec,
}


def test_every_family_and_task_has_its_tables() -> None:
    kinds = {*BY_FAMILY.values(), *(kind for t in BY_TASK.values() for kind in (t.TaskSpec, t.DataSpec))}
    assert kinds <= {*TABLES.values()}


def documented(heading: str, text: str = SPEC_PAGE) -> dict[str, str]:
    """The default that a section's table gives each field, as text."""
    body = re.search(rf"^##+ {heading}\n(.*?)(?=^##+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert body, f"there is no section {heading}"
    return dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| `?([^|`]+)`? \| [^|]+ \|$", body[1], re.MULTILINE))


def value(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return tuple(found) if isinstance(found, list) else found


@pytest.mark.parametrize(("headings", "kind"), TABLES.items(), ids=map(", ".join, TABLES))
def test_every_field_is_documented_with_its_default(headings: tuple[str, ...], kind: type[Section]) -> None:
    table = {name: text for heading in headings for name, text in documented(heading).items()}
    # A section inherits what every task or family has, which stands first there.
    assert sorted(table) == sorted(kind.model_fields)
    for name, field in kind.model_fields.items():
        if field.is_required():
            assert table[name] == "required", name
        elif isinstance(field.default, Section):
            assert table[name] == "its defaults", name
        else:
            assert value(table[name]) == field.default, name


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.__name__)
def test_every_option_of_a_policy_is_documented_with_its_default(policy: type[Policy]) -> None:
    page = (ROOT / "docs" / "compression.md").read_text(encoding="utf-8")
    defaults = {name: field.default for name, field in policy.model_fields.items()}
    table = documented(defaults.pop("type"), page)
    assert defaults.pop("match") == "*"
    assert {name: value(text) for name, text in table.items()} == defaults


def test_the_example_spec_is_whole() -> None:
    example, *others = re.findall(r"^```yaml\n(.*?)^```", SPEC_PAGE, re.MULTILINE | re.DOTALL)
    parse_spec(example)
    for other in others:
        parse_spec(yaml.safe_dump(yaml.safe_load(example) | yaml.safe_load(other)))


@page
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor


@page
def test_named_paths_exist(page: Path) -> None:
    named = re.findall(
        r"`((?:hvdtrain|tests|torch_jobs|tf_jobs|benchmarks|examples)/[\w./-]+)`",
        page.read_text(encoding="utf-8"),
    )
    for path in named:
        assert (ROOT / path).exists(), path


@page
def test_commands_parse(page: Path) -> None:
    for line in shell_lines(page):
        program, *arguments = shlex.split(line, comments=True)
        if program == "hvdtrain":
            command, name = COMMANDS[arguments.pop(0)], program
            if hasattr(command, "commands"):
                command = command.commands[arguments.pop(0)]
            # Parses, and raises on an unknown option or a missing argument; runs nothing.
            command.make_context(name, arguments)
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


@page
def test_commands_named_in_passing_exist(page: Path) -> None:
    for words in re.findall(r"`hvdtrain ([a-z]+(?: [a-z]+)?)", page.read_text(encoding="utf-8")):
        first, *second = words.split()
        assert first in COMMANDS, words
        if hasattr(COMMANDS[first], "commands"):
            assert second[0] in COMMANDS[first].commands, words


@page
def test_overrides_name_fields(page: Path) -> None:
    for path in re.findall(r"--set '?([a-z_.]+)=", page.read_text(encoding="utf-8")):
        first, *rest = path.split(".")
        fields = spec_class().model_fields
        if rest:
            section = section_of(fields[first])
            several = {
                "compression": POLICIES,
                "model": BY_FAMILY.values(),
                "data": [task.DataSpec for task in BY_TASK.values()],
                "task": [task.TaskSpec for task in BY_TASK.values()],
            }
            kinds = several.get(first, (section,) if section else ())
            (first,), fields = rest, {n: f for kind in kinds for n, f in kind.model_fields.items()}
        assert first in fields, path


def shell_lines(page: Path) -> Iterator[str]:
    """Commands of a page's shell blocks, continued lines joined; output redirected elsewhere is cut off."""
    for block in re.findall(r"^```(?:ba)?sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(hvdtrain|make) ", line):
                yield line.partition(" > ")[0]
