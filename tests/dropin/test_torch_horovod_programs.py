"""Programs written for Horovod's documented API give what they gave, with nothing changed but the import."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.jobs.runs import launch

PROGRAMS = sorted((Path(__file__).parent / "horovod_programs").glob("torch_*.py"))
# All programs in one process, so that start-up is paid once: `python -c` with their paths.
RUN_ALL = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"


def outcomes(programs: list[Path]) -> dict[str, list[float]]:
    """Each result of each rank, as often as a program gave it, in turn."""
    done = launch(2, ["-c", RUN_ALL, *map(str, programs)], timeout=120)
    assert done.returncode == 0, done.stdout[-5000:]
    # mpirun tags whatever piece of a line it happens to read.
    printed = re.sub(r"\[1,\d\]<\w+>:", "", done.stdout)
    found = re.findall(r"RESULT (\d) (\w+) ([-\d.e]+)", printed)
    results: dict[str, list[float]] = {}
    for rank, name, value in found:
        results.setdefault(f"{name} {rank}", []).append(float(value))
    return results


def test_three_programs_after_changing_only_the_import(tmp_path: Path) -> None:
    changed = []
    for program in PROGRAMS:
        text = program.read_text()
        assert text.count("import horovod.torch as hvd\n") == text.count("horovod.torch") == 1
        changed.append(tmp_path / program.name)
        changed[-1].write_text(text.replace("import horovod.torch as hvd", "import hvdtrain.torch as hvd"))
    # Horovod's own first: nothing of ours is imported by then.
    results = outcomes([*PROGRAMS, *changed])
    assert len(results) == 8
    for name, (theirs, ours) in results.items():
        # Of two ways to round to 16 bits on the wire, neither is the other's.
        tolerance = 0.02 if name.startswith(("accuracy", "weights")) else 1e-10
        assert ours == pytest.approx(theirs, rel=tolerance), name
