"""How a rank ends that has failed: its message is shown, and the whole job ends."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from hvdtrain.core.errors import HvdtrainError
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.process.preemption import RESUMABLE_STATUS, Preempted

# Every rank meets a bad spec; the others wait for rank 0's message to end the job before they repeat it.
_SECONDS_BEFORE_REPEATING = 3.0
# What every collective says, in either framework, once another rank has ended.
_LOST = "Horovod has been shut down"


@contextmanager
def ends_the_job(raises: bool = False) -> Iterator[None]:
    """Show what goes wrong inside, with this rank's number, and end the process, so that the whole job ends.

    Args:
        raises: errors are raised instead: there is one process, and it is not ours to end.
    """
    try:
        yield
    except HvdtrainError as error:
        if raises:
            raise
        if launched_rank():
            time.sleep(_SECONDS_BEFORE_REPEATING)
        _die(f"error: {error}")
    except Preempted:
        if raises:
            raise
        # All of it has been said, and all ranks are here.
        os._exit(RESUMABLE_STATUS)
    except KeyboardInterrupt:
        if raises:
            raise
        _die("interrupted")
    except Exception as error:
        if raises:
            raise
        lost = _LOST in str(error)
        _die(f"HorovodInternalError: {_LOST}: another rank has ended" if lost else traceback.format_exc())


def _die(message: str) -> None:
    print(f"[rank {launched_rank() or 0}] {message}", file=sys.stderr, flush=True)
    # Not sys.exit: Horovod 0.28.1's atexit handler waits for the other ranks, which may wait for this one.
    os._exit(1)
