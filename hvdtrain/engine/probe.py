"""Asks the installed Horovod what it can do, in a process of its own, because importing it may crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass

_QUESTION = """
import json
import horovod.{name} as hvd
features = dict(gloo=hvd.gloo_built(), mpi=hvd.mpi_built(), nccl=hvd.nccl_built())
print(json.dumps({{name: bool(value) for name, value in features.items()}}))
"""


@dataclass(frozen=True)
class Probe:
    """What `import horovod.<framework>` came to.

    Attributes:
        error: why it does not load; None when it does, and only then the rest means anything.
        gloo: Gloo is built in.
        mpi: MPI is built in.
        nccl: NCCL is built in.
    """

    error: str | None = None
    gloo: bool = False
    mpi: bool = False
    nccl: bool = False


def probe_horovod(framework: str) -> Probe:
    """Imports Horovod for a framework in another process and asks for its features.

    Args:
        framework: `torch` or `tensorflow`.
    """
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    # From an empty folder: a `horovod` beside the user would shadow the installed one.
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _QUESTION.format(name=framework)],
            cwd=folder, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    if done.returncode < 0:
        return Probe(error=f"importing it ends in {signal.Signals(-done.returncode).name}")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return Probe(error=f"cannot be imported: {last[0]}")
    return Probe(**json.loads(done.stdout.strip().splitlines()[-1]))
