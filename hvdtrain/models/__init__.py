"""Model families: hyper-parameters and weight names, one file a family, no framework imported."""

from __future__ import annotations

from hvdtrain.core.sections import ModelSpec
from hvdtrain.core.weights import ModelFamily
from hvdtrain.models import bert

_FAMILIES: dict[str, ModelFamily] = {"bert": bert}


def family_of(model: ModelSpec) -> ModelFamily:
    """The family a spec's model belongs to."""
    return _FAMILIES[model.model_type]
