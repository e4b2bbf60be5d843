"""Training that goes on where it was stopped: what a run of `fit` needs, of all ranks, in one directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save, save_file

from hvdtrain.core.checkpoints.manifest import STATE_FILE
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE, replace_directory
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE, Arrays, layout_of, share_out
from hvdtrain.core.errors import CheckpointError, TrainingError
from hvdtrain.keras.attach import engines_of, shardings_of
from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.keras.sharding import whole_state
from hvdtrain.tensorflow.dropin.agreement import parameters_of, shared_name
from hvdtrain.tensorflow.dropin.gradients import Gradients
from hvdtrain.tensorflow.dropin.messages import broadcast_bytes

RANKS_FILE = "ranks.safetensors"


class Checkpoint(Callback):
    """Saves a run's state after epochs, and goes on from it when `fit` is called again.

    A directory holds weights, the optimizer's variables, the epoch, and of every rank what is its own:
    compression residuals, a window of micro-batches under way, and random generators of layers. It is
    replaced as a whole. Rank 0 alone reads and writes it. The order of data is the program's own concern.
    """

    def __init__(self, directory: str | Path, save_epochs: int = 1, resume: bool = True) -> None:
        """Choose where and how often.

        Args:
            directory: of the state.
            save_epochs: epochs from one save to the next.
            resume: whether `fit` goes on from a state that is there; else it is written over.
        """
        super().__init__()
        self.directory, self.save_epochs, self.resume = Path(directory), save_epochs, resume
        self._record: dict[str, Any] | None = None

    def set_model(self, model: keras.Model) -> None:
        """Called by Keras before any callback begins, so that restoring comes after a broadcast."""
        super().set_model(model)
        self._record = None
        self.attached.before_first_step.append(self._restore)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Tell `fit` where to begin."""
        # Keras' own way for callbacks; see its BackupAndRestore.
        self.model._initial_epoch = self._known().get("epoch")
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save."""
        if (epoch + 1) % self.save_epochs == 0:
            self.save(epoch + 1)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """The next `fit` begins where it says."""
        self.model._initial_epoch = None
        super().on_train_end(logs)

    def save(self, epoch: int) -> None:
        """Write the state; every rank calls it.

        Args:
            epoch: how many are done.

        Raises:
            CheckpointError: the disk is full or the directory cannot be written; what was there is as it was.
        """
        gradients = _gradients(self.model)
        own = [broadcast_bytes(save(_own(self.model, gradients)), rank) for rank in range(hvd.size())]
        with whole_state(shardings_of(self.model)):
            if hvd.rank() == 0:
                self._write(epoch, own, gradients)

    def _write(self, epoch: int, own: Sequence[bytes], gradients: Gradients) -> None:
        record = {"epoch": epoch, "ranks": hvd.size(), "layout": _layout(gradients)}

        def write(into: Path) -> None:
            save_file(_arrays(self.model.weights), into / WEIGHTS_FILE)
            save_file(_arrays(self.model.optimizer.variables), into / OPTIMIZER_FILE)
            each = {f"{rank}.{name}": a for rank, each in enumerate(own) for name, a in load(each).items()}
            save_file(each, into / RANKS_FILE)
            (into / STATE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

        try:
            replace_directory(self.directory, write)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{self.directory}: the state could not be saved: {error}; what was there before is as it was"
            ) from None

    def _known(self) -> dict[str, Any]:
        """What rank 0's state.json says; empty where there is nothing to go on from."""
        if self._record is None:
            found = "{}"
            try:
                if hvd.rank() == 0 and self.resume and self.directory.exists():
                    found = (self.directory / STATE_FILE).read_text(encoding="utf-8")
                self._record = json.loads(broadcast_bytes(found.encode()))
            except (OSError, ValueError) as error:
                raise CheckpointError(self._damaged(error)) from None
        return self._record

    def _restore(self) -> None:
        record = self._known()
        if not record:
            return
        gradients = _gradients(self.model)
        if _shared(record["layout"]) != _shared(_layout(gradients)):
            raise CheckpointError(
                f"{self.directory}: was saved with other weights, compression or bucket_cap_mb: keep "
                "those, or give Checkpoint(resume=False)"
            )
        files = {}
        if hvd.rank() == 0:
            try:
                files = {name: load_file(self.directory / name) for name in _FILES}
            except (OSError, SafetensorError) as error:
                raise CheckpointError(self._damaged(error)) from None
        weights, optimizer, each = (load(broadcast_bytes(save(files.get(name, {})))) for name in _FILES)
        _assign(self.model.weights, weights, self.directory)
        _assign(self.model.optimizer.variables, optimizer, self.directory)
        _give_own(self.model, gradients, each, record["ranks"])

    def _damaged(self, error: Exception) -> str:
        return (
            f"{self.directory}: not a whole state of callbacks.Checkpoint ({error}): give another directory, "
            "or Checkpoint(resume=False), which writes over it"
        )


_FILES = (WEIGHTS_FILE, OPTIMIZER_FILE, RANKS_FILE)


def _gradients(model: keras.Model) -> Gradients:
    engines = engines_of(model)
    if len(engines) != 1 or model.optimizer is None:
        raise TrainingError(
            "callbacks.Checkpoint: expected a model compiled with one DistributedOptimizer (found "
            f"{len(engines)})"
        )
    return engines[0].prepare(model.trainable_variables)


def _layout(gradients: Gradients) -> str:
    return layout_of([bucket.layout for bucket in gradients.buckets], gradients.settings.rules)


def _shared(layout: str) -> list[Any]:
    """What of a layout is equal where states fit: names depend on whether the model was built or loaded."""
    return [[policy, [*map(shared_name, names)]] for policy, names in json.loads(layout)]


def _arrays(variables: Sequence[keras.Variable]) -> Arrays:
    # By position: Keras' names depend on what the process has built before.
    names = [f"{i}.{p.name}" for i, p in enumerate(parameters_of(variables))]
    return {name: np.asarray(v.numpy(), order="C") for name, v in zip(names, variables, strict=True)}


def _assign(variables: Sequence[keras.Variable], arrays: Arrays, directory: Path) -> None:
    found = {int(name.partition(".")[0]): array for name, array in arrays.items()}
    for i, (parameter, variable) in enumerate(zip(parameters_of(variables), variables, strict=True)):
        if i not in found or found[i].shape != parameter.shape:
            raise CheckpointError(
                f"{directory}: {parameter.name} has shape {found[i].shape if i in found else None} there and "
                f"{parameter.shape} in the model: build the model that was saved"
            )
        variable.assign(found[i])


def _own(model: keras.Model, gradients: Gradients) -> Arrays:
    """What differs between ranks."""
    buckets = enumerate(gradients.driver.read())
    states = {f"bucket{i}.{name}": array for i, state in buckets for name, array in state.items()}
    window = {f"window.{name}": array for name, array in gradients.accumulation.read().items()}
    seeds = {f"seed.{i}": seed.numpy() for i, seed in enumerate(_seeds(model))}
    return {name: np.asarray(array, order="C") for name, array in (states | window | seeds).items()}


def _give_own(model: keras.Model, gradients: Gradients, every: Arrays, ranks: int) -> None:
    def of(rank: int, prefix: str) -> Arrays:
        start = f"{rank}.{prefix}."
        return {name.removeprefix(start): array for name, array in every.items() if name.startswith(start)}

    rank, size, states = hvd.rank(), hvd.size(), []
    for i, (policy, _) in enumerate(gradients.driver.states):
        saved = [of(r, f"bucket{i}") for r in range(ranks)]
        stacked = {
            name: np.stack([each[name] for each in saved]) if name in policy.residuals else array
            for name, array in saved[0].items()
        }
        states.append(share_out(policy, stacked, size)[rank])
    gradients.driver.write(states)
    if ranks == size:
        gradients.accumulation.write(of(rank, "window"))
        for i, seed in enumerate(_seeds(model)):
            seed.assign(of(rank, "seed")[str(i)])
        return
    # Residuals must keep their sum over ranks; random generators start again.
    windows = [of(r, "window") for r in range(ranks)]
    added = {n: sum(w[n] for w in windows) / size for n in windows[0] if n.startswith(("total", "samples"))}
    gradients.accumulation.write(windows[0] | added)


def _seeds(model: keras.Model) -> list[keras.Variable]:
    others = {id(v) for v in (*model.weights, *(v for m in model.metrics for v in m.variables))}
    return [variable for variable in model.variables if id(variable) not in others]
