"""Error feedback beside a loss scale that a loop of the user's own changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.errors import SpecError


def keeps_residuals(states: Iterable[tuple[Policy, Collection[str]]]) -> bool:
    """Whether any policy adds to an update what it did not send of the last one.

    Args:
        states: each bucket's policy, and the names of its state arrays.
    """
    return any((policy.residuals - policy.counters).intersection(names) for policy, names in states)


def residuals_are_scaled(scaler: str, instead: str) -> SpecError:
    """Why such a policy cannot reduce gradients that have a loss scale in them.

    Args:
        scaler: what changes the scale.
        instead: what to use, as the first of several ways out.
    """
    return SpecError(
        f"compression with error feedback cannot be used with {scaler}, because {scaler} changes the loss "
        f"scale. Use {instead}, or none, fp16, or a compression with use_error_feedback: false"
    )
