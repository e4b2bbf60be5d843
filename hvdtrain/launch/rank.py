"""`python -m hvdtrain.launch.rank PROGRAM`: a rank that ends when the launcher that started it is gone.

Horovod ends a remote rank by ending its local ssh, and ssh without a terminal leaves the remote program
running. What that program notices is that nobody reads its output any more.
"""

from __future__ import annotations

import os
import runpy
import select
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from hvdtrain.core.errors import LaunchError

_STATUS = 1


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
    threading.Thread(target=_end_with_reader, daemon=True).start()
    sys.argv = program
    if by_name:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program[0]).parent)
        runpy.run_path(program[0], run_name="__main__")


def _end_with_reader() -> None:
    output = select.poll()
    # No event is asked for: errors and hang-ups are reported always.
    output.register(1, 0)
    output.poll()
    # Horovod's own exit would wait for the other ranks.
    os._exit(_STATUS)


if __name__ == "__main__":
    main(sys.argv[1:])
