"""What an optimizer does differently by weight: `optimizer.groups`, weight decay, the trust ratio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hvdtrain.core.families.weights import Weight
from hvdtrain.core.patterns import check_matches, first_match
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec


@dataclass(frozen=True)
class Setting:
    """How one weight is updated.

    Attributes:
        learning_rate_factor: what the learning rate is multiplied with.
        weight_decay: 0 where the weight does not decay.
        adapts: whether its step is scaled by its trust ratio, as LAMB and LARS do with all weights of two
            axes or more.
    """

    learning_rate_factor: float
    weight_decay: float
    adapts: bool


def setting_of(spec: OptimizerSpec, weight: Weight) -> Setting:
    """How an optimizer updates a weight: by the first group whose pattern fits its name, if any does."""
    place = first_match([group.match for group in spec.groups], weight.name)
    factor, decay = 1.0, spec.weight_decay if weight.decays else 0.0
    if place < len(spec.groups):
        group = spec.groups[place]
        factor = group.learning_rate_factor
        decay = decay if group.weight_decay is None else group.weight_decay
    return Setting(factor, decay, spec.type in ("lamb", "lars") and len(weight.shape) > 1)


def check_groups(spec: OptimizerSpec, names: Sequence[str]) -> None:
    """Refuse a group that has no weight.

    Args:
        spec: the optimizer's section.
        names: of all the model's weights.

    Raises:
        SpecError: naming the pattern, and a weight that looks like it.
    """
    check_matches([g.match for g in spec.groups], names, lambda index: f"optimizer.groups.{index}.match")
