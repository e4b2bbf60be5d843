"""Doctor, run as a user runs it, on environments that lack this or that."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.engine.support import Environment

DOCTOR = "import typer; from hvdtrain.engine.commands import doctor; typer.run(doctor)"


def examine(environment: Environment, *arguments: str, **env: str) -> tuple[int, dict[str, Any]]:
    done = environment.run(DOCTOR, "--json", *arguments, **env)
    assert "Traceback" not in done.stderr, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    return done.returncode, {row["name"]: row for row in report["rows"]}


def with_torch(bare: Environment, version: str, horovod_torch: str, built_for: str) -> None:
    # As in torch's own wheels: the local part stands in the package and not in the metadata.
    own = f"from typing import Optional\n__version__ = '{version}'\ncuda: Optional[str] = None\n"
    bare.add("torch", version.partition("+")[0], version__py=own)
    metadata = json.dumps({"pytorch": built_for, "dummy": "none"})
    bare.add("horovod", "0.28.1", metadata__json=metadata, torch__py=horovod_torch)


WORKING = "gloo_built = lambda: 1\nmpi_built = lambda: 0\nnccl_built = lambda: 0\n"


def test_a_bare_environment_lacks_what_is_needed(bare: Environment) -> None:
    status, rows = examine(bare)
    assert status == 1
    assert rows["torch"]["status"] == rows["tensorflow"]["status"] == rows["horovod"]["status"] == "missing"
    assert "pip install" in rows["torch"]["action"]
    assert rows["horovod"]["action"] == "hvdtrain engine build --install"
    assert rows["python"]["status"] == rows["cores"]["status"] == "ok"
    assert all(row["action"] for row in rows.values() if row["status"] == "missing")


def test_the_table_says_the_same_for_people(bare: Environment) -> None:
    done = bare.run(DOCTOR, COLUMNS="200")
    assert done.returncode == 1
    assert "hvdtrain engine build --install" in done.stdout


def test_one_framework_is_enough(bare: Environment) -> None:
    with_torch(bare, "2.13.0", WORKING, built_for="2.13.0")
    status, rows = examine(bare)
    assert rows["horovod"]["status"] == rows["horovod.torch"]["status"] == rows["gloo"]["status"] == "ok"
    assert rows["tensorflow"]["status"] == rows["mpi"]["status"] == rows["bfloat16"]["status"] == "absent"
    assert "engine build" in rows["bfloat16"]["action"]
    assert status == 0


def test_a_horovod_as_released_has_its_vulnerabilities(bare: Environment) -> None:
    with_torch(bare, "2.13.0", WORKING, built_for="2.13.0")
    row = examine(bare)[1]["known vulnerabilities"]
    assert row["status"] == "open"
    assert "CVE-2024-10190, CVE-2026-31234" in row["found"]
    assert "engine build" in row["action"]
    assert "CVE-2026-31234" in bare.run(DOCTOR, COLUMNS="200").stdout


def test_a_horovod_of_an_older_hvdtrain_names_what_it_lacks(bare: Environment) -> None:
    with_torch(bare, "2.13.0", WORKING, built_for="2.13.0")
    (bare.site / "horovod" / "hvdtrain_engine.json").write_text(json.dumps({"closed": ["CVE-2024-10190"]}))
    row = examine(bare)[1]["known vulnerabilities"]
    assert (row["status"], row["found"].partition(":")[0]) == ("open", "CVE-2026-31234")


def test_a_local_version_is_the_same_version(bare: Environment) -> None:
    with_torch(bare, "2.11.0+cu130", WORKING, built_for="2.11.0+cu130")
    status, rows = examine(bare)
    assert rows["torch"]["found"] == "2.11.0+cu130"
    assert (rows["horovod"]["status"], status) == ("ok", 0)


def test_the_same_torch_for_another_device_asks_for_a_rebuild(bare: Environment) -> None:
    with_torch(bare, "2.11.0+cpu", WORKING, built_for="2.11.0+cu130")
    assert examine(bare)[1]["horovod"]["status"] == "missing"


def test_an_upgraded_torch_asks_for_a_rebuild(bare: Environment) -> None:
    with_torch(bare, "2.14.1", WORKING, built_for="2.13.0")
    status, rows = examine(bare)
    assert status == 1
    assert rows["horovod"]["found"] == "built for torch 2.13.0, and 2.14.1 is installed"
    assert "rebuild" in rows["horovod"]["action"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("raise ImportError('undefined symbol: c10')", "undefined symbol: c10"),
    ],
)
def test_a_horovod_that_crashes_is_a_row(bare: Environment, code: str, words: str) -> None:
    with_torch(bare, "2.13.0", code, built_for="2.13.0")
    status, rows = examine(bare)
    assert status == 1
    assert words in rows["horovod.torch"]["found"]
    assert "engine build" in rows["horovod.torch"]["action"]


def test_each_host_is_tried(bare: Environment, tmp_path: Path) -> None:
    with_torch(bare, "2.13.0", WORKING, built_for="2.13.0")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("localhost slots=2\nno-such-host.invalid slots=4\n")
    status, rows = examine(bare, "--hostfile", str(hostfile))
    assert status == 1
    assert rows["host localhost"]["status"] == "ok"
    assert rows["host no-such-host.invalid"]["status"] == "missing"
    assert "ssh no-such-host.invalid" in rows["host no-such-host.invalid"]["action"]


def test_hosts_need_an_ssh_client(bare: Environment, tmp_path: Path) -> None:
    with_torch(bare, "2.13.0", WORKING, built_for="2.13.0")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("localhost slots=2\n")
    (tmp_path / "empty").mkdir()
    status, rows = examine(bare, "--hostfile", str(hostfile), PATH=str(tmp_path / "empty"))
    assert status == 1
    assert rows["ssh"]["status"] == "missing"
    assert examine(bare, PATH=str(tmp_path / "empty"))[1]["ssh"]["status"] == "absent"


def test_this_environment_is_whole() -> None:
    import sys

    here = Environment(Path(sys.executable), Path(os.devnull).parent)
    status, rows = examine(here)
    assert status == 0, [row for row in rows.values() if row["status"] == "missing"]
    for name in (
        "torch",
        "tensorflow",
        "keras",
        "horovod",
        "horovod.torch",
        "horovod.tensorflow",
        "gloo",
        "mpi",
        "bfloat16",
        "known vulnerabilities",
    ):
        assert rows[name]["status"] == "ok"
    assert rows["known vulnerabilities"]["found"] == "closed: CVE-2024-10190, CVE-2026-31234"
    assert rows["horovod"]["found"].startswith("0.28.1+hvdtrain.")


def test_the_installed_horovod_says_what_it_is() -> None:
    import importlib.metadata

    from packaging.specifiers import SpecifierSet

    from hvdtrain.engine.cache import installed_horovod
    from hvdtrain.engine.edits import EDITED_VERSION, edits_for
    from hvdtrain.engine.versions import find_versions

    installed = installed_horovod()
    metadata = importlib.metadata.metadata("horovod")
    assert installed is not None
    assert installed.version == metadata["Version"] == EDITED_VERSION
    assert EDITED_VERSION in SpecifierSet("==0.28.1")
    listed = str(metadata["Description"] or metadata.get_payload())
    assert all(f"- {edit.name}: " in listed for edit in edits_for(find_versions()))
