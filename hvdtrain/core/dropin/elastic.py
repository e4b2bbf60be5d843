"""Elastic jobs: where ranks come and go, a wrapper's gradients cannot follow them yet."""

from __future__ import annotations

import os

from hvdtrain.core.errors import SpecError, TrainingError


def refuse_sharded_state(state: str, zero_stage: int) -> None:
    """Refuse to keep the state of an optimizer of which each rank has a part.

    Args:
        state: the class that was asked for.
        zero_stage: of the optimizer.

    Raises:
        SpecError: it is sharded.
    """
    if zero_stage:
        raise SpecError(
            f"{state}: keeps the whole optimizer state on every rank, and with zero_stage={zero_stage} each "
            "has its own part alone: use zero_stage=0, or save checkpoints instead (docs/sharding.md)"
        )


def refuse_elastic_job(state: str, package: str) -> None:
    """Refuse to keep an elastic job's state for an optimizer that `DistributedOptimizer` has wrapped.

    Args:
        state: the class that was asked for.
        package: `torch` or `keras`.

    Raises:
        TrainingError: the launcher was told that ranks may come and go.
    """
    if os.environ.get("HOROVOD_ELASTIC") != "1":
        return
    raise TrainingError(
        f"{state}: in an elastic job ranks come and go, and an optimizer of hvdtrain.{package} reduces over "
        f"those that it was wrapped for: launch a fixed number of ranks (-np N, no --min-np, --max-np and "
        f"--host-discovery-script), or use horovod.{package}'s own optimizer and state"
    )
