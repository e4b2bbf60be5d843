"""`python -m hvdtrain.launch.rank PROGRAM`: a rank that ends when the launcher that started it is gone."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.process.heartbeat import start_heartbeat
from hvdtrain.core.process.orphans import end_with_launcher


def main(arguments: Sequence[str]) -> None:
    """Runs a script or, after `-m`, a module in this process, as `python` would.

    Args:
        arguments: `SCRIPT [ARGUMENT...]` or `-m MODULE [ARGUMENT...]`.

    Raises:
        LaunchError: no program is given.
    """
    by_name = list(arguments[:1]) == ["-m"]
    program = list(arguments[1:] if by_name else arguments)
    if not program:
        raise LaunchError("usage: python -m hvdtrain.launch.rank [-m] PROGRAM [ARGUMENT...]")
    end_with_launcher()
    start_heartbeat()
    sys.argv = program
    if by_name:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).parent)
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
