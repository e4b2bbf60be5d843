"""`python -m hvdtrain.horovod` runs a program as `python` does, but for what it imports as Horovod."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from hvdtrain.core.dropin.program import TWINS

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "hvdtrain.horovod", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_every_way_to_import_gives_ours_and_our_own_code_has_horovods(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text("import horovod.torch\nname = horovod.torch.__name__\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import importlib, json, sys\n"
        "import horovod.torch as plain\n"
        "import horovod, library\n"
        "from horovod import torch as taken\n"
        "from horovod.torch import elastic, DistributedOptimizer, allreduce\n"
        "from horovod.torch.optimizer import DistributedOptimizer as deep\n"
        "from horovod.torch.mpi_ops import Average\n"
        "import horovod.runner.common.util.secret as secret\n"
        "def fails(statement):\n"
        "    try: exec(statement, {'__name__': '__main__'})\n"
        "    except ImportError as error: return str(error)\n"
        "dynamic = importlib.import_module('horovod.torch')\n"
        "import hvdtrain.torch.dropin.session as session\n"
        "print(json.dumps(dict(\n"
        "    ours=[m.__name__ for m in (plain, horovod.torch, taken, dynamic, elastic)] + [library.name],\n"
        "    optimizer=[DistributedOptimizer.__module__, deep.__module__],\n"
        "    horovods=[allreduce.__module__, secret.__name__, session.hvd.__name__, horovod.__version__],\n"
        "    missing=[fails('import horovod.nothing'), fails('from horovod.torch import nothing')],\n"
        "    average=plain.Average is Average)))\n"
    )
    found = json.loads(run("script.py", cwd=tmp_path).stdout)
    assert found["ours"] == ["hvdtrain.torch"] * 4 + ["hvdtrain.torch.elastic", "hvdtrain.torch"]
    assert found["optimizer"] == ["hvdtrain.torch.dropin.optimizer"] * 2
    assert found["horovods"] == [
        "horovod.torch.mpi_ops",
        "horovod.runner.common.util.secret",
        "horovod.torch",
        version("horovod"),
    ]
    assert found["average"]
    assert found["missing"][0] == "No module named 'horovod.nothing'"
    assert found["missing"][1].startswith("cannot import name 'nothing' from 'hvdtrain.torch'")


def test_the_program_runs_as_the_main_module_with_its_own_arguments_and_folder(tmp_path: Path) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "beside.py").write_text("value = 7\n")
    (folder / "script.py").write_text(
        "import sys, beside, multiprocessing\n"
        "import horovod.torch as hvd\n"
        "def names(number): return hvd.__name__, __name__, number\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv, __file__, beside.value, sys.modules['__main__'].names is names)\n"
        "    for method in ('spawn', 'forkserver', 'fork'):\n"
        "        with multiprocessing.get_context(method).Pool(1) as pool: print(pool.map(names, [1]))\n"
        "    sys.exit(3)\n"
    )
    lines = run("programs/script.py", "--lr", "1", "-m", cwd=tmp_path, code=3).stdout.splitlines()
    assert lines[0] == "['programs/script.py', '--lr', '1', '-m'] programs/script.py 7 True"
    # What a worker process imports is ours as well; 'fork' has the parent's main module.
    assert lines[1:3] == ["[('hvdtrain.torch', '__mp_main__', 1)]"] * 2
    assert lines[3] == "[('hvdtrain.torch', '__main__', 1)]"
    assert run("-m", "beside", cwd=folder).stdout == ""


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    assert "usage:" in run(cwd=tmp_path, code=2).stderr
    assert "there is no file 'gone.py'" in run("gone.py", cwd=tmp_path, code=1).stderr
    (tmp_path / "broken.py").write_text("1 / 0\n")
    shown = run("broken.py", cwd=tmp_path, code=1).stderr
    assert shown.endswith("ZeroDivisionError: division by zero\n")
    assert 'File "broken.py", line 1' in shown


@pytest.mark.parametrize("name", TWINS.values())
def test_what_stands_in_exists(name: str) -> None:
    file = ROOT.joinpath(*name.split("."))
    assert file.with_suffix(".py").is_file() or (file / "__init__.py").is_file()
