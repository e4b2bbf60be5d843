"""Ranks of a job that strangers meddle with: they sum until a file says that the strangers are through.

security_worker.py plain FOLDER     then they use the launcher's server again
security_worker.py elastic FOLDER   then they wait until there is one rank more
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import horovod.torch as hvd
import torch
from horovod.common.elastic import ObjectState

mode, folder = sys.argv[1], Path(sys.argv[2])


def note(name: str, text: str) -> None:
    """Writes a file in one step."""
    (folder / f".{name}").write_text(text)
    (folder / f".{name}").replace(folder / name)


def is_over(name: str) -> bool:
    """Whether every rank sees the file."""
    seen = torch.tensor([float((folder / name).exists())])
    return hvd.allreduce(seen, op=hvd.Sum, name="seen").item() == hvd.size()


def plain() -> None:
    """The server is used before and after."""
    while not is_over("go"):
        time.sleep(0.02)
    # Each asks the launcher's server again. All ranks cannot: they are a process set already.
    for rank in range(hvd.size()):
        hvd.add_process_set([rank])
    mine = torch.tensor([1.0 + hvd.rank()])
    note(f"sum{hvd.rank()}", repr(hvd.allreduce(mine, op=hvd.Sum, name="mine").item()))


@hvd.elastic.run
def elastic(state: ObjectState) -> None:
    """Ends when there are three ranks; each new world meets over the launcher's server."""
    note(f"ready{hvd.rank()}", str(os.getpid()))
    while not (is_over("go") and hvd.size() == 3):
        time.sleep(0.02)
        state.steps += 1
        state.commit()
    mine = torch.tensor([1.0 + hvd.rank()])
    note(f"sum{hvd.rank()}", repr(hvd.allreduce(mine, op=hvd.Sum, name="mine").item()))


hvd.init()
if mode == "plain":
    note(f"ready{hvd.rank()}", str(os.getpid()))
    plain()
else:
    elastic(ObjectState(hvd.broadcast_object, hvd.rank, steps=0))
