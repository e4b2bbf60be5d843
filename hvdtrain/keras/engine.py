"""What `DistributedOptimizer` puts into an optimizer: it takes gradients, and updates where a window ends."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hvdtrain.core.dropin import Settings
from hvdtrain.core.errors import TrainingError
from hvdtrain.keras.sharding import Sharding
from hvdtrain.tensorflow.dropin.arguments import Reach, handles
from hvdtrain.tensorflow.dropin.gradients import Gradients
from hvdtrain.tensorflow.dropin.session import waiting_for_ranks

ENGINE = "_hvdtrain"
_Apply = Callable[..., None]


def engine_of(optimizer: Any) -> Engine | None:
    """What `DistributedOptimizer` put into an optimizer, or into the one that it scales the loss for."""
    if scales_loss(optimizer):
        optimizer = optimizer.inner_optimizer
    return getattr(optimizer, ENGINE, None)


class Engine:
    """What a distributed optimizer has beside its own state; nothing of it is saved with the model.

    Attributes:
        local_layers: whose gradients stay this rank's own.
        scale_local_gradients: whether those are divided as all others are.
        sharding: with `zero_stage`, who keeps what of the optimizer's state.
        updating: whether any is in its update, in which other optimizers may have a part.
    """

    updating = False

    def __init__(self, optimizer: keras.optimizers.Optimizer, settings: Settings, process_set: Any) -> None:
        """Nothing is known of the model yet.

        Args:
            optimizer: without loss scale.
            settings: the wrapper's arguments.
            process_set: the ranks that gradients are reduced over.
        """
        self.optimizer, self.settings, self._process_set = optimizer, settings, process_set
        self.local_layers: list[keras.layers.Layer] = []
        self.scale_local_gradients = True
        self.gradients: Gradients | None = None
        self.sharding = Sharding(optimizer, settings) if settings.zero_stage else None
        # Whether fit compares the ranks' weights itself, before its first step.
        self.compares_at_start = False
        # Called in every step, if at all, before the gradients of this rank meet the others'.
        self.when_gradients_are_ready: Callable[[], None] | None = None
        # As of `Gradients`, for the next step that is traced.
        self.tells_of_requests = False
        self._applying = False

    @property
    def reach(self) -> Reach:
        """Whose gradients are reduced, and over which ranks; of layers that are built."""
        return Reach(self._process_set, handles(self.local_layers), self.scale_local_gradients)

    def prepare(self, variables: Sequence[keras.Variable]) -> Gradients:
        """Lay the gradients out, once; the first time every rank calls it."""
        if self.gradients is None:
            global _engines  # noqa: PLW0603
            _engines += 1
            options = _options(self.optimizer, self.compares_at_start)
            self.gradients = Gradients(self.settings, variables, f"optimizer{_engines}.", options, self.reach)
            self.gradients.compare_values_at_second_window = not self.compares_at_start
            self.gradients.compared_besides = _rate(self.optimizer)
            if self.sharding is not None:
                self.sharding.prefix = self.gradients.prefix
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
        scale = host.dynamic_scale if scales_loss(host) else host.loss_scale_factor

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
            gradients = self.prepare(variables)
            gradients.tells_of_requests = self.tells_of_requests
            gradients.micro_batch(unscaled, self._take_samples(host), update)

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
        # Set in every step: a tensor of another graph would give an error that nobody understands.
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


def scales_loss(optimizer: Any) -> bool:
    """Whether it is one that scales the loss for another."""
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
