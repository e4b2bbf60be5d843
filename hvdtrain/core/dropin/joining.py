"""What compression makes of ranks that leave before others (Horovod's `join`)."""

from __future__ import annotations

from collections.abc import Iterable

from hvdtrain.core.compression.protocol import Policy, State
from hvdtrain.core.dropin.settings import Settings
from hvdtrain.core.errors import SpecError


def check_join(call: str, settings: Settings, applied: int) -> None:
    """Refuse to leave early where the other ranks' collectives need this one.

    Args:
        call: how the user calls it, for errors.
        settings: of the wrapper.
        applied: updates that this rank has taken.

    Raises:
        SpecError: naming the policy and what to do.
    """
    if settings.zero_stage:
        raise SpecError(
            f"{call}: zero_stage {settings.zero_stage}: what a rank owns is not updated once it has left: "
            "give every rank equally many batches (drop_last=True), or use zero_stage=0"
        )
    others = "give every rank equally many batches (drop_last=True), or use none, fp16 or bf16"
    for policy in settings.rules.policies:
        if not policy.joins:
            raise SpecError(
                f"{call}: compression {policy.type} needs every rank in every update, and a rank that has "
                f"left sends nothing but zeros: {others}"
            )
        if type(policy.at(applied + 1)) is not type(policy):
            raise SpecError(
                f"{call}: compression {policy.type} needs all ranks in update {applied + 1}, and this one "
                f"leaves before it: {others}"
            )


def known_to_all(states: Iterable[tuple[Policy, State]]) -> list[tuple[State, str]]:
    """Compression's state that all ranks change alike in each update; a rank that leaves misses the changes.

    Args:
        states: each bucket's policy and its state.

    Returns:
        (the state of a bucket, the name of an array in it), in the order of buckets.
    """
    return [(state, name) for policy, state in states for name in state if name not in policy.residuals]
