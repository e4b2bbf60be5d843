"""Programs written for Horovod's documented API run after changing only the import, with Keras 3."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.jobs.runs import launch

PROGRAMS = Path(__file__).parent / "horovod_programs"
RUN_ALL = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"


def changed(name: str, directory: Path) -> Path:
    text = (PROGRAMS / f"{name}.py").read_text()
    framework = name.partition("_")[0]
    assert text.count(f"import horovod.{framework} as hvd\n") == text.count("horovod.") == 1
    program = directory / f"{name}.py"
    program.write_text(text.replace(f"import horovod.{framework}", f"import hvdtrain.{framework}"))
    return program


def outcome(np: int, programs: list[Path]) -> dict[str, float]:
    done = launch(np, ["-c", RUN_ALL, *map(str, programs)], timeout=120)
    assert done.returncode == 0, done.stdout[-5000:]
    # mpirun tags whatever piece of a line it happens to read.
    printed = re.sub(r"\[1,\d\]<\w+>:", "", done.stdout)
    found = re.findall(r"RESULT (\d) (\w+) \[?([-\d.e]+)", printed)
    return {f"{name} {rank}": float(value) for rank, name, value in found}


NAMES = ("keras_fit", "keras_schedules", "tensorflow_loop")


# The quick ones are torch's.
@pytest.mark.slow
def test_three_programs_after_changing_only_the_import(tmp_path: Path) -> None:
    found = outcome(2, [changed(name, tmp_path) for name in NAMES])
    assert len(found) == 2 * (3 + 5 + 2)
    for name in ("loss", "accuracy", "weights", "first", "last", "warm", "rate", "score", "tapemean"):
        assert found[f"{name} 0"] == found[f"{name} 1"], name
    # Rates of the last batch of the warm-up, and of the last epoch, a tenth.
    assert found["warm 0"] == pytest.approx(0.1)
    assert found["rate 0"] == pytest.approx(0.01)
    assert found["last 0"] < 0.5 * found["first 0"]


@pytest.mark.slow
def test_fit_gives_what_one_process_with_twice_the_batch_gives(tmp_path: Path) -> None:
    program = changed("keras_fit", tmp_path)
    found, alone = outcome(2, [program]), outcome(1, [program])
    for name in ("loss", "accuracy", "weights"):
        assert found[f"{name} 0"] == pytest.approx(alone[f"{name} 0"], rel=1e-5), name


@pytest.mark.slow
def test_the_loop_gives_what_horovods_own_tape_gives(tmp_path: Path) -> None:
    found, theirs = (
        outcome(2, [program])
        for program in (changed("tensorflow_loop", tmp_path), PROGRAMS / "tensorflow_loop.py")
    )
    assert found == {name: pytest.approx(value, rel=1e-5) for name, value in theirs.items()}
