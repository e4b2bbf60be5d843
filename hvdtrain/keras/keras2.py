"""What programs have of Keras 2, as Horovod's documentation taught it: translated, or named in an error."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hvdtrain.core.errors import SpecError
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.keras import keras2_files

# What Keras 2 took, and what Keras 3 has in its place.
INSTEAD = {
    "compile(experimental_run_tf_function=...)": "leave it out",
    "compile(sample_weight_mode=...)": "leave it out",
    "fit(workers=..., use_multiprocessing=..., max_queue_size=...)": "give them to a keras.utils.PyDataset",
    "fit_generator(...)": "write fit(...)",
    "evaluate_generator(...)": "write evaluate(...)",
    "predict_generator(...)": "write predict(...)",
    "optimizer(lr=...)": "write learning_rate=",
    "optimizer(decay=...)": "write learning_rate=keras.optimizers.schedules.InverseTimeDecay(rate, 1, decay)",
    "optimizer.lr": "write optimizer.learning_rate",
    "optimizer.variables()": "write optimizer.variables, without parentheses",
    "optimizer.weights": "write optimizer.variables",
    "optimizer.get_weights()": "write [v.numpy() for v in optimizer.variables]",
    "optimizer.minimize(...)": "take gradients by tf.GradientTape, and write optimizer.apply_gradients(...)",
    "apply_gradients(experimental_aggregate_gradients=...)": "leave it out",
    "keras.optimizers.legacy": "write keras.optimizers",
    "keras.backend.get_value(x)": "write keras.ops.convert_to_numpy(x)",
    "keras.backend.set_value(x, value)": "write x.assign(value)",
    "keras.backend.set_session(...)": "leave it out; tf.config.set_visible_devices chooses GPUs",
    "keras.backend": "write keras.ops, or tf.keras.backend",
    "keras.preprocessing": "write tf.keras.preprocessing, or keras.utils.image_dataset_from_directory",
    "checkpoint.h5": "write checkpoint.keras",
    "save_weights('weights.h5')": "write save_weights('name.weights.h5')",
}
_WORKERS = ("workers", "use_multiprocessing", "max_queue_size")
_OLD_COMPILE = ("experimental_run_tf_function", "sample_weight_mode")
_OLD_APPLY = ("experimental_aggregate_gradients", "skip_gradients_aggregation", "name")

_SCHEDULE = "decay= makes the learning rate a schedule, which cannot be set; leave decay= out to set the rate"

_bridging = False
_told: set[str] = set()


def explain() -> None:
    """Name what is of Keras 2 in the error that it makes."""
    _install()


def bridge() -> None:
    """Translate what is of Keras 2, and say once, on rank 0, what to write instead."""
    global _bridging  # noqa: PLW0603
    _install()
    if not _bridging:
        _bridging = True
        keras2_files.bridge(_meet)
        _bridge_modules()


def _meet(written: str, key: str | None = None) -> None:
    """The program has this.

    Raises:
        SpecError: it is not to be translated.
    """
    instead = INSTEAD[key or written]
    if not _bridging:
        raise SpecError(
            f"{written} is from Keras 2. {instead[:1].upper()}{instead[1:]}, or start the program with "
            "`python -m hvdtrain.horovod SCRIPT`"
        )
    if written not in _told and not launched_rank():
        print(f"hvdtrain: {written} is from Keras 2: {instead}", file=sys.stderr, flush=True)
    _told.add(written)


@functools.cache
def _install() -> None:
    _drop(keras.Model, "compile", {name: f"compile({name}=...)" for name in _OLD_COMPILE})
    workers = dict.fromkeys(_WORKERS, "fit(workers=..., use_multiprocessing=..., max_queue_size=...)")
    for method in ("fit", "evaluate", "predict"):
        _drop(keras.Model, method, workers)
        setattr(_owner(keras.Model, method), f"{method}_generator", _generator(method))
    base = _owner(keras.optimizers.Optimizer, "learning_rate")
    aggregate = "apply_gradients(experimental_aggregate_gradients=...)"
    _drop(base, "apply_gradients", dict.fromkeys(_OLD_APPLY, aggregate))
    base.__init__ = _initializer(base.__init__)
    for kind in (base, keras.optimizers.LossScaleOptimizer):
        kind.variables = property(_callable(vars(kind)["variables"].fget))
    base.lr = property(_lr, _set_lr)
    base.weights = property(_weights)
    base.get_weights, base.minimize = _get_weights, _minimize
    for name in ("backend", "preprocessing.image"):
        _add_old_names(import_module(f"keras.{name}"), import_module(f"keras._tf_keras.keras.{name}"))
    _add_old_names(import_module("keras._tf_keras.keras.backend"), ModuleType("nothing"))


def _owner(kind: type, name: str) -> Any:
    """The class that defines what `kind` has."""
    return next(each for each in kind.__mro__ if name in vars(each))


def _drop(kind: type, method: str, old: dict[str, str]) -> None:
    """Let a method take arguments of Keras 2 that have no meaning any more."""
    owner = _owner(kind, method)
    plain = vars(owner)[method]

    @functools.wraps(plain)
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        for name in [name for name in old if name in keywords]:
            _meet(old[name])
            del keywords[name]
        return plain(self, *arguments, **keywords)

    setattr(owner, method, call)


def _generator(method: str) -> Callable[..., Any]:
    # Keras 2 has the number of steps as the second argument where Keras 3 has the labels.
    steps = "steps_per_epoch" if method == "fit" else "steps"

    def call(self: Any, generator: Any, *arguments: Any, **keywords: Any) -> Any:
        _meet(f"{method}_generator(...)")
        if arguments:
            keywords[steps], *arguments = arguments  # type: ignore[assignment]
        if arguments:
            raise SpecError(f"{method}_generator: give arguments behind {steps} by their names")
        return getattr(self, method)(generator, **keywords)

    return call


def _initializer(plain: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(plain)
    def call(self: Any, learning_rate: Any, *arguments: Any, **keywords: Any) -> None:
        if "lr" in keywords:
            _meet("optimizer(lr=...)")
            learning_rate = keywords.pop("lr")
        if _bridging:
            if isinstance(learning_rate, int | np.number):
                learning_rate = float(learning_rate)
            decay = keywords.pop("decay", None)
            if decay and isinstance(learning_rate, float):
                _meet("optimizer(decay=...)")
                learning_rate = keras.optimizers.schedules.InverseTimeDecay(learning_rate, 1, decay)
        plain(self, learning_rate, *arguments, **keywords)

    return call


class _Variables(list[Any]):
    """A list that may be called, as the method of Keras 2."""

    def __call__(self) -> list[Any]:
        _meet("optimizer.variables()")
        return self


def _callable(plain: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    return lambda self: _Variables(plain(self))


def _lr(self: Any) -> Any:
    _meet_attribute("optimizer.lr")
    return self.learning_rate


def _set_lr(self: Any, value: Any) -> None:
    # Keras 3 would keep it as an attribute that nobody reads.
    _meet("optimizer.lr")
    if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        raise SpecError(f"optimizer.lr cannot be set: {_SCHEDULE}")
    self.learning_rate = value


def _weights(self: Any) -> list[Any]:
    _meet_attribute("optimizer.weights")
    return list(self.variables)


def _get_weights(self: Any) -> list[np.ndarray]:
    _meet("optimizer.get_weights()")
    return [variable.numpy() for variable in self.variables]


def _minimize(self: Any, loss: Any, var_list: Any, tape: tf.GradientTape | None = None, **_: Any) -> Any:
    _meet("optimizer.minimize(...)")
    if callable(loss):
        with tf.GradientTape() as recorded:
            loss = loss()
        tape = recorded
    variables = tf.nest.flatten(var_list() if callable(var_list) else var_list)
    if tape is None:
        raise SpecError("optimizer.minimize: give loss as a function, or the tape that has recorded it")
    return self.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))


def _meet_attribute(written: str, key: str | None = None) -> None:
    """As `_meet`; whoever asks whether there is such an attribute learns that there is none."""
    try:
        _meet(written, key)
    except SpecError as error:
        raise AttributeError(str(error)) from None


def _add_old_names(module: ModuleType, old: ModuleType) -> None:
    """Find what Keras 2 has in a module, beside what Keras 3 has."""
    kind = module.__name__.removeprefix("keras._tf_keras.").removesuffix(".image")
    known = {key.removeprefix("keras.backend.").partition("(")[0]: key for key in INSTEAD}

    def find(name: str) -> Any:
        # In either Keras.
        if kind == "keras.backend" and name == "set_session":
            _meet_attribute("keras.backend.set_session(...)")
            return lambda *_: None
        if name.startswith("_") or not hasattr(old, name):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        written = known.get(name, f"{module.__name__}.{name}")
        _meet_attribute(written, None if name in known else kind)
        return getattr(old, name)

    vars(module)["__getattr__"] = find


def _bridge_modules() -> None:
    # Keras' own fail with Keras 3's variables.
    old = vars(import_module("keras._tf_keras.keras.backend"))
    old.update(set_value=_set_value, batch_set_value=_set_values)
    for name in ("keras.optimizers.legacy", "keras._tf_keras.keras.optimizers.legacy"):
        module = import_module(name)
        for each in [each for each in vars(module) if not each.startswith("_")]:
            delattr(module, each)
        vars(module)["__getattr__"] = _legacy_optimizer
    keras.preprocessing.text = import_module("keras._tf_keras.keras.preprocessing.text")
    sys.modules["keras.preprocessing.text"] = keras.preprocessing.text
    keras.utils.np_utils = sys.modules["keras.utils.np_utils"] = keras.utils


def _set_value(variable: Any, value: Any) -> None:
    if not hasattr(variable, "assign"):
        raise SpecError(
            f"keras.backend.set_value: expected a variable (found {type(variable).__name__}). If it is "
            f"optimizer.lr: {_SCHEDULE}"
        )
    variable.assign(value)


def _set_values(pairs: Iterable[tuple[Any, Any]]) -> None:
    for variable, value in pairs:
        _set_value(variable, value)


def _legacy_optimizer(name: str) -> Any:
    if name.startswith("_") or not hasattr(keras.optimizers, name):
        raise AttributeError(f"module 'keras.optimizers.legacy' has no attribute {name!r}")
    _meet("keras.optimizers.legacy")
    return getattr(keras.optimizers, name)
