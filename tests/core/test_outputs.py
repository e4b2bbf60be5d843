"""Standard streams that cannot be written as they should: nothing ends by them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[2])
PROGRAM = """
import sys
from hvdtrain.core.process.outputs import outlast_readers
from rich.console import Console
import typer
outlast_readers()
outlast_readers()
with open("file", "w") as file:
    assert file.fileno() > 2, file.fileno()
    for _ in range(5000):
        print("\\xe9 \\u4e2d \\udcff")
        print("\\u4e2d", file=sys.stderr)
        sys.stdout.flush()
    Console().print("\\xd7 \\u2500")
    typer.echo("\\u4e2d")
    sys.stdout.isatty(), sys.stderr.isatty()
    file.write("whole")
"""


@pytest.mark.parametrize(
    "redirect",
    ["", ">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full", "2> /dev/full", "| head -n 1", "2>&1 | true"],
)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_program_goes_on(redirect: str, encoding: str, tmp_path: Path) -> None:
    shell = f'{{ "$@"; echo $? > status; }} {redirect}'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert (tmp_path / "status").read_text() == "0\n", done.stderr
    assert (tmp_path / "file").read_text() == "whole"
    if not redirect:
        expected = "\\xe9 \\u4e2d \\udcff" if encoding == "ascii" else "\xe9 \u4e2d \\udcff"
        assert done.stdout.decode().splitlines()[0] == expected


@pytest.mark.parametrize("redirect", ["", ">&-", "2>&-", "| head -n 1"])
def test_a_command_gives_no_traceback(redirect: str, tmp_path: Path) -> None:
    # A path that no encoding has.
    folder = os.fsencode(tmp_path) + b"/\xe9\xff"
    done = subprocess.run(
        ["sh", "-c", f'"$@" {redirect}', "sh", sys.executable, "-m", "hvdtrain.cli", "validate", folder],
        env={**os.environ, "PYTHONPATH": ROOT, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    if redirect != "2>&-":
        assert b"no such file" in done.stderr
