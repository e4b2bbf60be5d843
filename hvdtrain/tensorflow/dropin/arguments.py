"""The values that Horovod's arguments have in this framework."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import horovod.tensorflow as hvd
import keras

from hvdtrain.core.dropin import Horovod, Settings
from hvdtrain.core.errors import SpecError

HOROVOD = Horovod(
    compressions={hvd.Compression.none: "none", hvd.Compression.fp16: "fp16"},
    operations={"Average": hvd.Average, "Sum": hvd.Sum, "Adasum": hvd.Adasum},
    everyone=hvd.global_process_set,
)


@dataclass(frozen=True)
class Reach:
    """Whose gradients are reduced, and over which ranks.

    Attributes:
        process_set: the ranks; this one is among them.
        local: handles of variables whose gradients stay this rank's own.
        scale_local_gradients: whether those are divided as all others are, so that they are of the same loss.
    """

    process_set: Any = hvd.global_process_set
    local: frozenset[int] = frozenset()
    scale_local_gradients: bool = True

    def is_local(self, variable: Any) -> bool:
        """Whether a variable's gradient, TensorFlow's or Keras', stays this rank's own."""
        return id(variable.handle) in self.local


def check_local_layers(wrapper: str, layers: Any, settings: Settings, scale: bool) -> list[Any]:
    """The layers whose variables stay local, as a list.

    Args:
        wrapper: how the user calls it, for errors.
        layers: a layer of Keras', several, or None.
        settings: the wrapper's other arguments.
        scale: whether local gradients are divided as all others are.

    Raises:
        SpecError: something is no layer, or does not go together.
    """
    found = [] if layers is None else list(layers) if isinstance(layers, Iterable) else [layers]
    for each in found:
        if not isinstance(each, keras.layers.Layer):
            raise SpecError(f"{wrapper}: local_layers: expected layers of Keras (found {each!r})")
    if found and settings.max_grad_norm is not None:
        raise SpecError(
            f"{wrapper}: max_grad_norm: with local layers every rank has another norm; leave it out"
        )
    if found and settings.zero_stage:
        raise SpecError(f"{wrapper}: zero_stage: every rank updates its local layers itself; leave it out")
    if found and not scale and settings.by_samples:
        raise SpecError(f"{wrapper}: scale_local_gradients=False does not go with average='samples'")
    return found


def handles(layers: Iterable[keras.layers.Layer]) -> frozenset[int]:
    """What `Reach.local` needs to know of layers that are built."""
    return frozenset(id(variable.handle) for layer in layers for variable in layer.trainable_variables)
