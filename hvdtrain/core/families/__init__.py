"""Model families: hyper-parameters and weight names, one file a family, no framework imported."""

from __future__ import annotations

from hvdtrain.core.families.family import Family
from hvdtrain.core.registry import Registry
from hvdtrain.core.spec.sections import ModelSection

FAMILIES = Registry(
    "model.model_type",
    "hvdtrain.families",
    {
        "bert": "hvdtrain.core.families.bert",
        "gpt2": "hvdtrain.core.families.gpt2",
        "llama": "hvdtrain.core.families.llama",
        "resnet": "hvdtrain.core.families.resnet",
        "vit": "hvdtrain.core.families.vit",
        "custom": "hvdtrain.core.families.custom",
    },
)


def family_of(model: ModelSection) -> Family:
    """The family a spec's model belongs to."""
    found: Family = FAMILIES.find(model.model_type)
    return found
