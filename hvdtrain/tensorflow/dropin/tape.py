"""A gradient tape whose gradients are those of all ranks."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from hvdtrain.core.dropin import (
    Settings,
    by_position,
    keeps_residuals,
    process_set_of,
    residuals_are_scaled,
    settings_of,
)
from hvdtrain.core.errors import SpecError
from hvdtrain.engine.cache import wire_types
from hvdtrain.tensorflow.dropin.arguments import HOROVOD, Reach, check_local_layers, handles
from hvdtrain.tensorflow.dropin.gradients import Gradients
from hvdtrain.tensorflow.dropin.session import require_init, waiting_for_ranks

# Every step makes a new tape, and may be traced again: this state lives as long as the variables, and does
# not keep them alive.
_known: dict[Hashable, Gradients] = {}
_numbers = itertools.count()
# What follows the tape in Horovod's wrapper.
_POSITIONAL = (
    "device_dense",
    "device_sparse",
    "compression",
    "sparse_as_dense",
    "op",
    "gradient_predivide_factor",
    "num_groups",
    "groups",
    "process_set",
    "scale_local_gradients",
)


@tf.autograph.experimental.do_not_convert
def DistributedGradientTape(
    gradtape: tf.GradientTape,
    *positional: Any,
    compression: Any = "none",
    max_grad_norm: float | None = None,
    average: str = "mean",
    bucket_cap_mb: float = 25.0,
    batch_samples: tf.Tensor | int | None = None,
    **horovods: Any,
) -> tf.GradientTape:
    """Make a tape's `gradient` reduce what it finds over all ranks.

    For gradients that add up over micro-batches, and with a loss scale beside error feedback or
    `max_grad_norm`, use `hvdtrain.keras.DistributedOptimizer` in the same loop.

    Args:
        gradtape: it is changed in place.
        *positional: Horovod's arguments that follow it, in Horovod's order.
        compression: a policy's name, its settings, or a list of them, as in a job spec; or of `Compression`.
        max_grad_norm: gradients are scaled to at most this global L2 norm, after the reduction.
        average: `mean` over ranks, `samples` (over all ranks' samples, exact for ragged batches) or `sum`.
        bucket_cap_mb: largest flat bucket in MiB.
        batch_samples: how many samples this rank's batch has, for `samples`.
        **horovods: Horovod's own spelling: `op` and others.

    Returns:
        The same tape.

    Raises:
        SpecError: an argument is wrong.
        TrainingError: `init` was not called.
    """
    said = horovods | ({} if compression == "none" else {"compression": compression})
    horovods |= by_position("DistributedGradientTape", _POSITIONAL, positional, said)
    compression = horovods.pop("compression", compression)
    return _distribute(
        "DistributedGradientTape",
        gradtape,
        batch_samples,
        horovods,
        compression=compression,
        max_grad_norm=max_grad_norm,
        average=average,
        bucket_cap_mb=bucket_cap_mb,
    )


@tf.autograph.experimental.do_not_convert
def PartialDistributedGradientTape(
    gradtape: tf.GradientTape,
    compression: Any = "none",
    max_grad_norm: float | None = None,
    average: str = "mean",
    bucket_cap_mb: float = 25.0,
    batch_samples: tf.Tensor | int | None = None,
    *,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
    **horovods: Any,
) -> tf.GradientTape:
    """As `DistributedGradientTape`, for models with layers that are each rank's own.

    Args:
        gradtape: it is changed in place.
        compression: as of `DistributedGradientTape`.
        max_grad_norm: None, where there are local layers.
        average: as of `DistributedGradientTape`.
        bucket_cap_mb: likewise.
        batch_samples: likewise.
        local_layers: a layer of Keras' or several; they are built. They may differ between ranks.
        scale_local_gradients: whether the gradients of local layers are divided as all others are, so that
            they are gradients of the same loss; else they are those of this rank's own loss.
        **horovods: Horovod's own spelling: `op` and others.

    Returns:
        The same tape.

    Raises:
        SpecError: an argument is wrong.
        TrainingError: `init` was not called.
    """
    return _distribute(
        "PartialDistributedGradientTape",
        gradtape,
        batch_samples,
        horovods,
        local_layers,
        scale_local_gradients,
        compression=compression,
        max_grad_norm=max_grad_norm,
        average=average,
        bucket_cap_mb=bucket_cap_mb,
    )


@tf.autograph.experimental.do_not_convert
def _distribute(
    wrapper: str,
    gradtape: tf.GradientTape,
    batch_samples: tf.Tensor | int | None,
    horovods: dict[str, Any],
    local_layers: Any = None,
    scale_local_gradients: bool = True,
    **ours: Any,
) -> tf.GradientTape:
    require_init(wrapper)
    if not isinstance(gradtape, tf.GradientTape):
        raise SpecError(f"{wrapper}: expected the tf.GradientTape (found a {type(gradtape).__name__})")
    process_set = process_set_of(wrapper, HOROVOD, horovods)
    settings = settings_of(
        wrapper,
        HOROVOD,
        horovods,
        gradient_accumulation_steps=1,
        **ours,
    )
    if settings.gradient_accumulation_steps > 1:
        raise SpecError(
            f"{wrapper}: backward_passes_per_step: a tape does not know where a window ends: "
            "leave it out, and use hvdtrain.keras.DistributedOptimizer"
        )
    if settings.zero_stage:
        raise SpecError(
            f"{wrapper}: zero_stage: a tape has no optimizer state to share out: leave it out, and use "
            "hvdtrain.keras.DistributedOptimizer"
        )
    if settings.by_samples and batch_samples is None:
        raise SpecError(f"{wrapper}: average='samples' needs batch_samples, as tf.shape(x)[0]")
    settings.rules.check_wire(wire_types())
    layers = check_local_layers(wrapper, local_layers, settings, scale_local_gradients)
    reach = Reach(process_set, handles(layers), scale_local_gradients)
    plain = gradtape.gradient

    @tf.autograph.experimental.do_not_convert
    def gradient(target: Any, sources: Any, *arguments: Any, **keywords: Any) -> Any:
        found = tf.nest.flatten(plain(target, sources, *arguments, **keywords))
        reduced: list[tf.Tensor | None] = []
        with waiting_for_ranks("gradients"):
            gradients = _gradients_of(settings, reach, tf.nest.flatten(sources))
            gradients.micro_batch(found, batch_samples, reduced.extend)
        return tf.nest.pack_sequence_as(sources, reduced)

    gradtape.gradient = gradient
    return gradtape


def _gradients_of(settings: Settings, reach: Reach, sources: list[tf.Variable]) -> Gradients:
    for source in sources:
        if not hasattr(source, "assign"):
            raise SpecError(
                "DistributedGradientTape: gradients with respect to variables are reduced (found a "
                f"{type(source).__name__} among the sources): take others from a plain tape"
            )
    key = settings, reach, tuple(map(id, sources))
    if key not in _known:
        _known[key] = Gradients(settings, sources, f"tape{next(_numbers)}.", reach=reach)
        for source in sources:
            # Another variable may get its number.
            weakref.finalize(source, _known.pop, key, None)
    return _known[key]


def is_reduced(variables: Iterable[Any]) -> bool:
    """Whether gradients of any of these variables have come from a distributed tape."""
    return any(True for _ in _reducing(variables))


def _reducing(variables: Iterable[Any]) -> Iterator[Gradients]:
    # Keras' variables and TensorFlow's own have their handle in common.
    applied = {id(variable.handle) for variable in variables}
    for gradients in [*_known.values()]:
        if not applied.isdisjoint(id(variable.handle) for variable in gradients.sources):
            yield gradients


def _refuse_what_a_loss_scale_spoils() -> None:
    """A tape reduces before the optimizer takes the scale out, and only the optimizer knows that it will."""
    plain = keras.optimizers.LossScaleOptimizer.apply

    @functools.wraps(plain)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        _check_unscaled(self._trainable_variables if trainable_variables is None else trainable_variables)
        plain(self, grads, trainable_variables)

    keras.optimizers.LossScaleOptimizer.apply = apply


@tf.autograph.experimental.do_not_convert
def _check_unscaled(variables: Iterable[Any]) -> None:
    instead = "a plain tape and hvdtrain.keras.DistributedOptimizer, which takes the scale out first"
    for gradients in _reducing(variables):
        if keeps_residuals(gradients.driver.states):
            raise residuals_are_scaled("LossScaleOptimizer", instead)
        if gradients.settings.max_grad_norm is not None:
            raise SpecError(
                "DistributedGradientTape: max_grad_norm: the tape clips gradients that still have the scale "
                f"of LossScaleOptimizer in them: use {instead}, or the clipping of the optimizer inside"
            )


_refuse_what_a_loss_scale_spoils()
