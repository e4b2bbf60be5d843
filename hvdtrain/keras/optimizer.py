"""A Keras optimizer that sums gradients over ranks before it applies them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from hvdtrain.core.dropin import by_position, process_set_of, settings_of
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.engine.cache import wire_types
from hvdtrain.keras import keras2, keras2_files
from hvdtrain.keras.engine import ENGINE, Engine, engine_of, scales_loss
from hvdtrain.tensorflow.dropin.arguments import HOROVOD, check_local_layers
from hvdtrain.tensorflow.dropin.session import require_init

# What follows `name` in Horovod's wrappers, up to where they differ.
_POSITIONAL = (
    "device_dense",
    "device_sparse",
    "compression",
    "sparse_as_dense",
    "gradient_predivide_factor",
    "op",
)


def DistributedOptimizer(
    optimizer: keras.optimizers.Optimizer,
    name: str | None = None,
    *positional: Any,
    compression: Any = "none",
    gradient_accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    average: str = "mean",
    bucket_cap_mb: float = 25.0,
    zero_stage: int = 0,
    **horovods: Any,
) -> keras.optimizers.Optimizer:
    """Make an optimizer reduce gradients over all ranks before it applies them.

    Its class and configuration stay what they are, so a saved model loads where hvdtrain is not installed.

    Args:
        optimizer: any of Keras 3; it is changed in place. A `LossScaleOptimizer` may be inside or outside.
        name: accepted as Horovod's; it changes nothing.
        *positional: Horovod's arguments that follow `name`, in Horovod's order.
        compression: a policy's name, its settings, or a list of them, as in a job spec; or of `Compression`.
        gradient_accumulation_steps: micro-batches that make one update; Keras' own argument must not be set.
        max_grad_norm: gradients are scaled to at most this global L2 norm, after the reduction.
        average: `mean` over ranks and micro-batches, `ranks` (micro-batches add up), `samples` (over all
            samples of all ranks, exact for ragged batches) or `sum`.
        bucket_cap_mb: largest flat bucket in MiB.
        zero_stage: 1: each rank keeps the optimizer's state of some variables alone, of about equal size in
            all. It updates those, and the others receive them. See docs/sharding.md.
        **horovods: Horovod's own spelling: `backward_passes_per_step`, `op` and others.

    Returns:
        The same optimizer.

    Raises:
        SpecError: an argument is wrong.
        TrainingError: `init` was not called.
    """
    del name
    require_init("DistributedOptimizer")
    said = horovods | ({} if compression == "none" else {"compression": compression})
    horovods |= by_position("DistributedOptimizer", _POSITIONAL, positional, said)
    compression = horovods.pop("compression", compression)
    settings = settings_of(
        "DistributedOptimizer",
        HOROVOD,
        horovods,
        compression=compression,
        gradient_accumulation_steps=gradient_accumulation_steps,
        max_grad_norm=max_grad_norm,
        average=average,
        bucket_cap_mb=bucket_cap_mb,
        zero_stage=zero_stage,
    )
    settings.rules.check_wire(wire_types())
    process_set = process_set_of("DistributedOptimizer", HOROVOD, horovods)
    if settings.zero_stage and process_set is not HOROVOD.everyone:
        raise SpecError(
            "DistributedOptimizer: zero_stage: state is shared out over all ranks: leave process_set out"
        )
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise SpecError(
            "DistributedOptimizer: expected an optimizer of Keras 3, such as keras.optimizers.Adam(0.001), "
            f"as its first argument (found a {type(optimizer).__name__})"
        )
    if engine_of(optimizer) is not None:
        raise SpecError("DistributedOptimizer: this optimizer is distributed already: wrap it once")
    inner = optimizer.inner_optimizer if scales_loss(optimizer) else optimizer
    if inner.gradient_accumulation_steps and settings.gradient_accumulation_steps > 1:
        raise SpecError(
            f"gradient_accumulation_steps is {settings.gradient_accumulation_steps} here and "
            f"{inner.gradient_accumulation_steps} in {type(inner).__name__}: micro-batches would be added up "
            "twice; leave it out there"
        )
    momentum = getattr(inner, "momentum", 0.0)
    settings.check_momentum(momentum if isinstance(momentum, float) else 0.0)
    engine = Engine(inner, settings, process_set)
    setattr(inner, ENGINE, engine)
    inner.apply = functools.partial(engine.apply, inner, inner.apply)
    return optimizer


def PartialDistributedOptimizer(
    optimizer: keras.optimizers.Optimizer,
    name: str | None = None,
    compression: Any = "none",
    *,
    local_layers: Any = None,
    scale_local_gradients: bool = True,
    **others: Any,
) -> keras.optimizers.Optimizer:
    """As `DistributedOptimizer`, for models with layers that are each rank's own.

    Args:
        optimizer: as of `DistributedOptimizer`.
        name: likewise.
        compression: likewise.
        local_layers: a layer of Keras' or several, which may differ between ranks: they are neither reduced,
            nor compared, nor broadcast.
        scale_local_gradients: whether their gradients are divided as all others are, so that they are
            gradients of the same loss; else they are those of this rank's own loss.
        **others: of `DistributedOptimizer`.

    Returns:
        The same optimizer.

    Raises:
        SpecError: an argument is wrong.
        TrainingError: `init` was not called.
    """
    DistributedOptimizer(optimizer, name, compression=compression, **others)
    engine = engine_of(optimizer)
    assert engine is not None
    wrapper = "PartialDistributedOptimizer"
    engine.local_layers = check_local_layers(wrapper, local_layers, engine.settings, scale_local_gradients)
    engine.scale_local_gradients = scale_local_gradients
    return optimizer


def load_model(
    filepath: str | Path,
    custom_optimizers: Sequence[type] | None = None,
    custom_objects: dict[str, Any] | None = None,
    compression: Any = "none",
    legacy_opts: bool = False,
    **arguments: Any,
) -> keras.Model:
    """Load a `.keras` or HDF5 file with its optimizer distributed.

    Args:
        filepath: of the file.
        custom_optimizers: classes of optimizers that are not Keras' own.
        custom_objects: as of `keras.models.load_model`.
        compression: of `DistributedOptimizer`.
        legacy_opts: accepted as Horovod's; it changes nothing.
        **arguments: others of `DistributedOptimizer`.

    Returns:
        The compiled model, ready for `fit`.

    Raises:
        TrainingError: the file has no optimizer.
    """
    del legacy_opts
    objects = {each.__name__: each for each in custom_optimizers or ()} | (custom_objects or {})
    model = keras.models.load_model(filepath, custom_objects=objects)
    if model.optimizer is None:
        raise TrainingError(f"{filepath}: was saved without an optimizer: load it by keras and compile it")
    keras2_files.restore_optimizer(model, filepath)
    loaded = model.optimizer
    if arguments.get("zero_stage"):
        # Its variables are those of one rank; the new one's are shared out.
        model.optimizer = type(loaded).from_config(loaded.get_config())
    DistributedOptimizer(model.optimizer, compression=compression, **arguments)
    if model.optimizer is not loaded:
        model.optimizer.build(model.trainable_variables)
        for ours, theirs in zip(model.optimizer.variables, loaded.variables, strict=True):
            ours.assign(theirs.numpy())
    return model


def consolidate_optimizer_state(optimizer: keras.optimizers.Optimizer, root_rank: int = 0) -> None:
    """Let one rank know the state of all, so that it can save the model, until the next update.

    Every rank calls it. Without `zero_stage` there is nothing to do.

    Args:
        optimizer: of the model.
        root_rank: the rank.
    """
    engine = engine_of(optimizer)
    if engine is not None and engine.sharding is not None:
        engine.sharding.consolidate(root_rank)


keras2.explain()
