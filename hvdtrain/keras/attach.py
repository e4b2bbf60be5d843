"""What our callbacks do to a model that `fit` is about to train: ranks agree before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import horovod.tensorflow as hvd
import keras
import tensorflow as tf

from hvdtrain.core.dropin import Parameter
from hvdtrain.core.errors import TrainingError
from hvdtrain.keras.engine import Engine, engine_of
from hvdtrain.keras.sharding import Sharding
from hvdtrain.tensorflow.dropin.agreement import AGREEMENT, check_structure, check_values, parameters_of
from hvdtrain.tensorflow.dropin.messages import broadcast_variables
from hvdtrain.tensorflow.dropin.session import require_init, waiting_for_ranks
from hvdtrain.tensorflow.world import gather_bytes

_ATTACHED = "_hvdtrain"
_BUILT, _NOT_BUILT = b"built", b"not built"


class Attached:
    """A model whose training step begins with ours; made by `attach`.

    Attributes:
        root_rank: the rank whose variables all take before the first step, if any.
        local_variables: that stay each rank's own, beside those of local layers.
        agreed: whether ranks agree on what this `fit` starts from.
        before_first_step: called once in a `fit`, when all variables hold their values.
        before_leaving: called where ranks leave a `fit` before its end.
    """

    def __init__(self, model: keras.Model) -> None:
        """Put our step before the model's.

        Args:
            model: compiled.
        """
        self._model, self._step = model, model.train_step
        self.root_rank: int | None = None
        self.local_variables: Sequence[Any] = ()
        self.agreed = False
        self._asked = self._finished = False
        self.before_first_step: list[Callable[[], None]] = []
        self.before_leaving: list[Callable[[], None]] = []
        model.train_step = self._train_step
        model.train_function = None

    def start(self) -> None:
        """Agree now, where the model's variables exist on every rank; else its first step does."""
        if not self.agreed and not self._asked:
            # A model that one rank has loaded is built there, and may not be where it was made.
            self._asked = True
            with waiting_for_ranks("the comparison of models"):
                every = gather_bytes(_BUILT if _is_built(self._model) else _NOT_BUILT, AGREEMENT)
            if not {*every} <= {_BUILT, _NOT_BUILT}:
                raise TrainingError(
                    "some ranks call fit with hvdtrain's callbacks and some without: give all ranks the same"
                )
            if all(each == _BUILT for each in every):
                self._agree()

    def finish(self) -> None:
        """Say, once a `fit`, what has been taken in and not applied."""
        if self._finished or hvd.rank() != 0:
            return
        self._finished = True
        for engine in engines_of(self._model):
            if engine.gradients is not None and (left := engine.gradients.accumulation.micro_batches):
                print(
                    f"hvdtrain: fit ended with an unfinished update: {left} of "
                    f"{engine.settings.gradient_accumulation_steps} micro-batches are kept. The next fit "
                    "completes and applies it.",
                    flush=True,
                )

    def _train_step(self, data: Any) -> Any:
        # Runs when TensorFlow traces; with run_eagerly in every step.
        if not self.agreed:
            with tf.init_scope():
                _build(self._model, data)
                self._agree()
        samples = tf.shape(next(leaf for leaf in tf.nest.flatten(data) if leaf is not None))[0]
        for engine in engines_of(self._model):
            engine.optimizer.batch_samples = samples
        return self._step(data)

    def _agree(self) -> None:
        self.agreed = True
        optimizer = self._model.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self._model.trainable_variables)
        local = self._local()
        weights = [variable for variable in self._model.weights if id(variable.handle) not in local]
        # Keras names what an optimizer keeps of a variable after it.
        kept = {v.path.replace("/", "_") for v in self._model.weights if id(v.handle) in local}
        every = (variable for each in _optimizers(self._model) for variable in each.variables)
        state = [v for v in every if not any(name in v.path for name in kept)]
        check_structure(
            [*parameters_of(weights), *_without_names(parameters_of(state))],
            options={"BroadcastGlobalVariables: root_rank": self.root_rank},
        )
        shardings = shardings_of(self._model)
        if self.root_rank is not None:
            shared_out = {id(slot) for each in shardings for slot, _ in each.slots}
            broadcast_variables([*weights, *(v for v in state if id(v) not in shared_out)], self.root_rank)
            for sharding in shardings:
                sharding.broadcast(self.root_rank)
        elif engines_of(self._model):
            # Not those that each rank learns from its own batches, as batch normalisation does.
            trained = [v for v in self._model.trainable_variables if id(v.handle) not in local]
            check_values(trained, "hvdtrain.values")
        for engine in engines_of(self._model):
            engine.compares_at_start = True
        actions, self.before_first_step = self.before_first_step, []
        for action in actions:
            action()
        for sharding in shardings:
            # The first update would make it useless, and keep it in memory.
            sharding.forget()

    def _local(self) -> set[int]:
        """Handles of the variables that are each rank's own."""
        found = {id(variable.handle) for variable in self.local_variables}
        return found.union(*(engine.reach.local for engine in engines_of(self._model)))


def _without_names(parameters: Sequence[Parameter]) -> list[Parameter]:
    """Of an optimizer's variables, whose names are made of the model's, with what loading changes in them."""
    return [replace(p, shared_name="a variable of the optimizer") for p in parameters]


def attach(model: keras.Model) -> Attached:
    """Make ranks agree before a model's next `fit` begins; the same object for the same model.

    Raises:
        TrainingError: `init` was not called, or the model is to be compiled by XLA.
    """
    require_init("fit with hvdtrain's callbacks")
    found = getattr(model, _ATTACHED, None)
    if found is None:
        found = Attached(model)
        # Not by Keras' own way of setting attributes, which would track it.
        object.__setattr__(model, _ATTACHED, found)
    found.agreed = found._asked = found._finished = False
    found.before_leaving.clear()
    if engines_of(model):
        _switch_off_jit(model)
    return found


def engines_of(model: keras.Model) -> list[Engine]:
    """Of the model's distributed optimizers."""
    return [engine for each in _optimizers(model) if (engine := engine_of(each)) is not None]


def shardings_of(model: keras.Model) -> list[Sharding]:
    """Of those whose state is shared out over ranks."""
    return [engine.sharding for engine in engines_of(model) if engine.sharding is not None]


def _optimizers(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    # A model with a step of its own, such as a GAN, may have several.
    found = [value for value in vars(model).values() if isinstance(value, keras.optimizers.Optimizer)]
    return list({id(each): each for each in found}.values())


def _is_built(model: keras.Model) -> bool:
    inside = [layer for layer in model._flatten_layers() if layer is not model]
    return bool(model.built or inside) and all(layer.built for layer in inside)


def _build(model: keras.Model, data: Any) -> None:
    if _is_built(model):
        return
    try:
        model._symbolic_build(data_batch=data)
    except Exception as error:
        raise TrainingError(
            "the model's variables cannot be made before its first step, so ranks cannot agree on them "
            f"({error}): call the model on a batch before fit"
        ) from error


def _switch_off_jit(model: keras.Model) -> None:
    """XLA has no Horovod operations. Keras does not tell its own choice of XLA from the user's."""
    if not model.jit_compile:
        return
    if not model._resolve_auto_jit_compile():
        raise TrainingError(
            "jit_compile=True: XLA cannot compile Horovod's operations, which are in the training step; "
            "compile the model with jit_compile=False"
        )
    model.jit_compile = False
    model.train_function = None
    if hvd.rank() == 0:
        print("hvdtrain: jit_compile is off: XLA cannot compile Horovod's operations", flush=True)
