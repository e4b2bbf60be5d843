"""The model families in TensorFlow: one module each, imported when it is used."""

from __future__ import annotations

import importlib

from hvdtrain.core.families.family import Network
from hvdtrain.core.sections import ModelSpec


def network_of(model: ModelSpec) -> type[Network]:
    """The network of the family that a spec's model belongs to."""
    return importlib.import_module(f"{__name__}.{model.model_type}").Network
