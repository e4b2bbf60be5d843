"""What Keras' own classes are made to say: that an optimizer is plain, and why a step of `fit` failed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from hvdtrain.keras.engine import Engine, engine_of
from hvdtrain.tensorflow.dropin.session import waiting_for_ranks
from hvdtrain.tensorflow.dropin.tape import is_reduced

_TOLD = "_hvdtrain_told"


def _tell_of_plain_optimizers(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Warn, once each and at their first step, of optimizers whose gradients nobody reduces.

    Keras copies, unpickles, clones and loads a model with a new optimizer.
    """

    @functools.wraps(plain)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        _look(self, trainable_variables)
        return plain(self, grads, trainable_variables)

    return apply


def _tell_of_absent_ranks(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A failed collective is one sentence, in place of TensorFlow's account of the graph."""

    @functools.wraps(plain)
    def fit(self: Any, *arguments: Any, **keywords: Any) -> Any:
        with waiting_for_ranks("a step of fit"):
            return plain(self, *arguments, **keywords)

    return fit


def _replace(kind: type, name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Wrap a method in the class that defines it, so that wrappers made elsewhere stay in place."""
    owner = next(each for each in kind.__mro__ if name in vars(each))
    setattr(owner, name, wrapper(vars(owner)[name]))


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


_replace(keras.optimizers.Optimizer, "apply", _tell_of_plain_optimizers)
_replace(keras.Model, "fit", _tell_of_absent_ranks)
