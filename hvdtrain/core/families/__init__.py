"""Model families: hyper-parameters and weight names, one file a family, no framework imported."""

from __future__ import annotations

from hvdtrain.core.families import bert
from hvdtrain.core.families.family import Family
from hvdtrain.core.sections import ModelSpec

_FAMILIES: dict[str, Family] = {"bert": bert}


def family_of(model: ModelSpec) -> Family:
    """The family a spec's model belongs to."""
    return _FAMILIES[model.model_type]
