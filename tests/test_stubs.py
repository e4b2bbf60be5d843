"""What editors and type checkers see of the packages whose names are found when they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.stubs import PACKAGES, ROOT, stub_file, stub_text

PROGRAM = """import hvdtrain.keras as keras_hvd
import hvdtrain.tensorflow as tf_hvd
import hvdtrain.torch as hvd
from hvdtrain.keras.callbacks import MetricAverage

hvd.init()
rank: int = hvd.rank()
hvd.allreduce(rank, op=hvd.Sum)
tf_hvd.broadcast_variables([], root_rank=0)
tape = tf_hvd.DistributedGradientTape
keras_hvd.callbacks.MetricAverage()

hvd.allreduc(rank)
hvd.alreduce
name: str = hvd.local_rank()
hvd.broadcast(rank)
hvd.metric_average()
keras_hvd.load_model()
keras_hvd.callbacks.Nonsense
"""
CONFIG = """[mypy]
[mypy-h5py.*,horovod.*,keras.*,keras_hub.*,tensorflow.*,torch.*,transformers.*]
ignore_missing_imports = True
follow_imports = skip
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_a_stub_has_the_real_names_and_signatures(package: str) -> None:
    assert stub_file(package).read_text(encoding="utf-8") == stub_text(package), "run `make stubs`"


def test_mypy_sees_names_types_and_mistakes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "program.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.split(":", 2)[1] for line in done.stdout.splitlines() if line.startswith("program.py:")]
    wrong = PROGRAM.splitlines().index("hvd.allreduc(rank)") + 1
    assert sorted(set(map(int, found))) == list(range(wrong, wrong + 7)), done.stdout


def test_stubs_are_packaged(tmp_path: Path) -> None:
    build = ["egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib", str(tmp_path / "lib")]
    subprocess.run([sys.executable, "setup.py", "--quiet", *build], cwd=ROOT, check=True, capture_output=True)
    wanted = [stub_file(package).relative_to(ROOT) for package in PACKAGES]
    for file in (Path("hvdtrain/py.typed"), *wanted):
        assert (tmp_path / "lib" / file).is_file(), file
