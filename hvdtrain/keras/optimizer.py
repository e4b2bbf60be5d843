"""A Keras optimizer that sums gradients over ranks before it applies them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hvdtrain.core.dropin import Settings, by_position, settings_of
from hvdtrain.core.errors import SpecError, TrainingError
from hvdtrain.engine.cache import wire_types
from hvdtrain.keras import keras2, keras2_files
from hvdtrain.tensorflow.dropin.arguments import HOROVOD
from hvdtrain.tensorflow.dropin.gradients import Gradients
from hvdtrain.tensorflow.dropin.session import require_init, waiting_for_ranks

_ENGINE = "_hvdtrain"
_Apply = Callable[..., None]
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
    )
    settings.rules.check_wire(wire_types())
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise SpecError(
            "DistributedOptimizer: expected an optimizer of Keras 3, such as keras.optimizers.Adam(0.001), "
            f"as its first argument (found a {type(optimizer).__name__})"
        )
    if engine_of(optimizer) is not None:
        raise SpecError("DistributedOptimizer: this optimizer is distributed already: wrap it once")
    inner = optimizer.inner_optimizer if _scales(optimizer) else optimizer
    if inner.gradient_accumulation_steps and settings.gradient_accumulation_steps > 1:
        raise SpecError(
            f"gradient_accumulation_steps is {settings.gradient_accumulation_steps} here and "
            f"{inner.gradient_accumulation_steps} in {type(inner).__name__}: micro-batches would be added up "
            "twice; leave it out there"
        )
    momentum = getattr(inner, "momentum", 0.0)
    settings.check_momentum(momentum if isinstance(momentum, float) else 0.0)
    engine = Engine(inner, settings)
    setattr(inner, _ENGINE, engine)
    inner.apply = functools.partial(engine.apply, inner, inner.apply)
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
    DistributedOptimizer(model.optimizer, compression=compression, **arguments)
    return model


def engine_of(optimizer: Any) -> Engine | None:
    """What `DistributedOptimizer` put into an optimizer, or into the one that it scales the loss for."""
    if _scales(optimizer):
        optimizer = optimizer.inner_optimizer
    return getattr(optimizer, _ENGINE, None)


class Engine:
    """What a distributed optimizer has beside its own state; nothing of it is saved with the model.

    Attributes:
        updating: whether any is in its update, in which other optimizers may have a part.
    """

    updating = False

    def __init__(self, optimizer: keras.optimizers.Optimizer, settings: Settings) -> None:
        """Nothing is known of the model yet.

        Args:
            optimizer: without loss scale.
            settings: the wrapper's arguments.
        """
        self.optimizer, self.settings = optimizer, settings
        self.gradients: Gradients | None = None
        # Whether fit compares the ranks' weights itself, before its first step.
        self.compares_at_start = False
        # Called in every step, if at all, before the gradients of this rank meet the others'.
        self.when_gradients_are_ready: Callable[[], None] | None = None
        self._applying = False

    def prepare(self, variables: Sequence[keras.Variable]) -> Gradients:
        """Lay the gradients out, once; the first time every rank calls it."""
        if self.gradients is None:
            global _engines  # noqa: PLW0603
            _engines += 1
            options = _options(self.optimizer, self.compares_at_start)
            self.gradients = Gradients(self.settings, variables, f"optimizer{_engines}.", options)
            self.gradients.compare_values_at_second_window = not self.compares_at_start
            self.gradients.compared_besides = _rate(self.optimizer)
        elif {id(v) for v in variables} != {id(v) for v in self.gradients.sources}:
            raise TrainingError(
                "the optimizer was given other variables than at its first step: make a new one by "
                "DistributedOptimizer when layers are frozen or thawed, and compile the model again"
            )
        return self.gradients

    @tf.autograph.experimental.do_not_convert
    def apply(
        self,
        host: keras.optimizers.Optimizer,
        plain: _Apply,
        grads: Sequence[tf.Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Take one micro-batch's gradients; where they end a window, update the variables.

        Args:
            host: the optimizer that was called: this one, or the `LossScaleOptimizer` around it.
            plain: its own `apply`.
            grads: as of `keras.optimizers.Optimizer.apply`.
            trainable_variables: likewise.
        """
        if self._applying or not len(grads) or (trainable_variables is None and not host.built):
            plain(grads, trainable_variables)
            return
        variables = list(host._trainable_variables if trainable_variables is None else trainable_variables)
        if not host.built:
            # The window's end is a branch of the graph, where variables cannot be made.
            with keras.name_scope(host.name):
                host.build(variables)
        scale = host.dynamic_scale if _scales(host) else host.loss_scale_factor

        def update(reduced: Sequence[tf.Tensor | None]) -> None:
            self._applying = Engine.updating = True
            try:
                plain(_times(reduced, scale), variables)
            finally:
                self._applying = Engine.updating = False

        # Reduced without the loss scale: residuals outlive a change of it.
        unscaled = _times(grads, None if scale is None else 1.0 / tf.convert_to_tensor(scale, tf.float32))
        if self.when_gradients_are_ready:
            unscaled = _telling(unscaled, self.when_gradients_are_ready)
        with waiting_for_ranks("gradients"):
            self.prepare(variables).micro_batch(unscaled, self._take_samples(host), update)

    def _take_samples(self, host: keras.optimizers.Optimizer) -> tf.Tensor | None:
        if not self.settings.by_samples:
            return None
        told = [s for o in (host, self.optimizer) if (s := getattr(o, "batch_samples", None)) is not None]
        if not told:
            raise TrainingError(
                "average='samples': how many samples the batch has is not known; add one of "
                "hvdtrain.keras.callbacks to fit's callbacks, or set optimizer.batch_samples = "
                "tf.shape(x)[0] before every apply_gradients"
            )
        # Told anew in every step: one of another graph would be an error that nobody understands.
        host.batch_samples = self.optimizer.batch_samples = None
        return told[0]


_engines = 0


def _options(optimizer: keras.optimizers.Optimizer, with_rate: bool) -> dict[str, Any]:
    """An optimizer's arguments, by the names that errors give.

    Args:
        optimizer: without loss scale.
        with_rate: whether also a learning rate that is a variable, which may yet be broadcast.
    """
    kind = type(optimizer).__name__
    try:
        with tf.init_scope(), warnings.catch_warnings():
            # Of what is unsafe to save, which this is not for.
            warnings.simplefilter("ignore")
            found = optimizer.get_config()
    except NotImplementedError:
        # One of the user's own need not have it.
        found = {}
    without = {"learning_rate"} if _rate(optimizer) and not with_rate else set()
    compared = {f"{kind}.{name}": value for name, value in _plain(found).items() if name not in without}
    return {"optimizer": kind} | compared


def _plain(config: Any) -> Any:
    """What of a configuration is equal in equal programs: names are numbered, functions have addresses."""
    if isinstance(config, dict):
        return {str(name): _plain(value) for name, value in config.items() if name not in ("name", "code")}
    if isinstance(config, list | tuple):
        return [_plain(value) for value in config]
    if hasattr(config, "item"):
        return config.item()
    return config if isinstance(config, str | int | float | None) else type(config).__name__


def _rate(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The learning rate, unless it is a schedule."""
    found = getattr(optimizer, "_learning_rate", None)
    return [found] if isinstance(found, keras.Variable) else []


def _times(gradients: Sequence[tf.Tensor | None], factor: Any) -> list[tf.Tensor | None]:
    if factor is None:
        return list(gradients)
    return [None if g is None else tf.convert_to_tensor(g) * tf.cast(factor, g.dtype) for g in gradients]


def _telling(gradients: Sequence[tf.Tensor | None], tell: Callable[[], None]) -> list[tf.Tensor | None]:
    def ready(first: np.ndarray) -> np.ndarray:
        tell()
        return first

    dense = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    with tf.control_dependencies([g for g in dense if g is not None]):
        told = tf.numpy_function(ready, [tf.constant(0)], tf.int32)
    with tf.control_dependencies([told]):
        return [None if g is None else tf.identity(g) for g in dense]


def _scales(optimizer: Any) -> bool:
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def _reduce_before_the_loss_scale_is_checked() -> None:
    """Each rank would check its own gradients, and one that finds infinity would skip the update alone.

    `model.compile` may put the `LossScaleOptimizer` around ours later, so its class has to ask.
    """
    plain = keras.optimizers.LossScaleOptimizer.apply

    @functools.wraps(plain)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        engine = engine_of(self)
        own = functools.partial(plain, self)
        if engine is None:
            own(grads, trainable_variables)
        else:
            engine.apply(self, own, grads, trainable_variables)

    keras.optimizers.LossScaleOptimizer.apply = apply


_reduce_before_the_loss_scale_is_checked()
keras2.explain()
