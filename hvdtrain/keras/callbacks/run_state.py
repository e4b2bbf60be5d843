"""What a run of `fit` consists of, as arrays: all variables, and what is a rank's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from hvdtrain.core.checkpoints.rank_files import rank_file
from hvdtrain.core.checkpoints.state import Arrays, layout_of
from hvdtrain.core.dropin.resuming import compression_name, own_generators
from hvdtrain.core.dropin.saved import LoopCheckpoint
from hvdtrain.core.errors import CheckpointError, TrainingError
from hvdtrain.keras.attach import engines_of
from hvdtrain.keras.callbacks.old_checkpoint import WINDOW, shared_layout
from hvdtrain.tensorflow.dropin.agreement import parameters_of
from hvdtrain.tensorflow.dropin.gradients import Gradients
from hvdtrain.tensorflow.generators import Generators


def gradients_of(model: keras.Model) -> Gradients:
    """Those of the model's one optimizer.

    Raises:
        TrainingError: it has none or several, or layers that are each rank's own.
    """
    engines = engines_of(model)
    if len(engines) != 1 or model.optimizer is None:
        raise TrainingError(
            "callbacks.Checkpoint: expected a model compiled with one DistributedOptimizer (found "
            f"{len(engines)})"
        )
    if engines[0].local_layers:
        raise TrainingError(
            "callbacks.Checkpoint: local_layers differ by rank, and a checkpoint has one rank's weights: "
            "save those layers yourself"
        )
    return engines[0].prepare(model.trainable_variables)


def layout_of_buckets(gradients: Gradients) -> str:
    """A text that is equal where compression states fit each other, as of `layout_of`."""
    return shared_layout(layout_of([bucket.layout for bucket in gradients.buckets], gradients.settings.rules))


def arrays_of(variables: Sequence[keras.Variable]) -> Arrays:
    """Copies, which stay as they are while training goes on."""
    names = [f"{i}.{p.name}" for i, p in enumerate(parameters_of(variables))]
    return {name: np.array(v.numpy(), order="C") for name, v in zip(names, variables, strict=True)}


def by_place(names: Iterable[str]) -> dict[int, str]:
    """Names of `arrays_of` by place: Keras' names depend on what the process has built before."""
    return {int(name.partition(".")[0]): name for name in names}


def assign(variables: Sequence[keras.Variable], found: LoopCheckpoint, file: str) -> None:
    """Give variables what a file has, on every rank; all call it.

    Raises:
        CheckpointError: a shape is another.
    """
    names = by_place(found.shapes[file])
    for i, (parameter, variable) in enumerate(zip(parameters_of(variables), variables, strict=True)):
        shape = tuple(found.shapes[file][names[i]]) if i in names else None
        if shape != parameter.shape:
            raise CheckpointError(
                f"{found.directory}: {parameter.name} has shape {shape} there and {parameter.shape} now: "
                "compile the model with the optimizer that was saved"
            )
        variable.assign(found.read(file, names[i]))


def own_arrays(model: keras.Model, gradients: Gradients) -> Arrays:
    """What differs between ranks."""
    buckets = enumerate(gradients.driver.read())
    states = {compression_name(i, name): array for i, state in buckets for name, array in state.items()}
    window = {f"{WINDOW}{name}": array for name, array in gradients.accumulation.read().items()}
    own = {name: np.asarray(array, order="C") for name, array in (states | window).items()}
    return own | own_generators(Generators(model))


def own_window(found: LoopCheckpoint, gradients: Gradients) -> Arrays:
    """A checkpoint's window under way; other ranks than saved it have equal shares of what was added up."""
    own: Arrays = {}
    for name, today in gradients.accumulation.read().items():
        path = f"{WINDOW}{name}"
        if path not in found.shapes[rank_file(0)]:
            # Saved without accumulation: nothing was added up.
            own[name] = np.zeros_like(today)
        elif found.same_ranks:
            own[name] = found.mine(path)
        elif name.startswith(("total", "samples")):
            own[name] = found.total(path) / found.ranks.size
        else:
            own[name] = found.read(rank_file(0), path)
    return own


def metrics_of(logs: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The numbers among what Keras tells its callbacks."""
    return {name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0}
