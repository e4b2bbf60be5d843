"""The model families in TensorFlow: one module each, imported when it is used."""

from __future__ import annotations

import importlib

from hvdtrain.core.families import family_of
from hvdtrain.core.families.family import Network
from hvdtrain.core.spec.sections import ModelSection


def network_of(model: ModelSection) -> type[Network]:
    """The network of the family that a spec's model belongs to."""
    found: type[Network] = importlib.import_module(family_of(model).NETWORKS["tensorflow"]).Network
    return found
