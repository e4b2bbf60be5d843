"""Optimizers that are not distributed, where they would train ranks apart: a copied model has one."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from hvdtrain.keras.optimizer import Engine, engine_of
from hvdtrain.tensorflow.dropin.tape import is_reduced

_TOLD = "_hvdtrain_told"


def tell_of_plain_optimizers() -> None:
    """Have Keras' optimizers warn, once each and at their first step, where nobody reduces their gradients.

    Keras copies, unpickles, clones and loads a model with an optimizer that it makes anew.
    """
    kind = keras.optimizers.Optimizer
    plain = kind.apply

    @functools.wraps(plain)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        _look(self, trainable_variables)
        return plain(self, grads, trainable_variables)

    kind.apply = apply


@tf.autograph.experimental.do_not_convert
def _look(optimizer: keras.optimizers.Optimizer, variables: Any) -> None:
    if Engine.updating or engine_of(optimizer) is not None or getattr(optimizer, _TOLD, False):
        return
    if not hvd.is_initialized() or hvd.size() == 1:
        return
    if is_reduced(getattr(optimizer, "_trainable_variables", ()) if variables is None else variables):
        return
    object.__setattr__(optimizer, _TOLD, True)
    warnings.warn(
        f"rank {hvd.rank()}: {type(optimizer).__name__} is not distributed: it applies this rank's gradients "
        "alone, and ranks train apart. A model that was copied, unpickled, cloned or loaded by Keras has "
        "such an optimizer: compile it with hvdtrain.keras.DistributedOptimizer(...), or load it by "
        "hvdtrain.keras.load_model. Nothing is wrong where the program itself reduces gradients, or means to "
        "train this model on one rank",
        stacklevel=2,
    )


tell_of_plain_optimizers()
