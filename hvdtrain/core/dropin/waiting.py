"""What is said when a collective fails because another rank is not there."""

from __future__ import annotations

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.process.environment import launched_rank


def left_alone(what: str, package: str, said: str) -> TrainingError:
    """The error in place of Horovod's, which tells neither the rank nor what to do.

    Args:
        what: was waited for.
        package: of the framework, which has `join`.
        said: by Horovod.
    """
    # Horovod does not tell the rank any more once it has been shut down.
    rank = launched_rank()
    return TrainingError(
        f"rank {'?' if rank is None else rank}: {what}: another rank failed, left the job or waits for "
        "something else. Its own message is the cause; where there is none, see which tensors Horovod names "
        f"as stalled. All ranks must take equally many steps (see {package}.join), and a pause of one must "
        f"be shorter than HOROVOD_STALL_SHUTDOWN_TIME_SECONDS. Horovod says: {said.strip()}"
    )
