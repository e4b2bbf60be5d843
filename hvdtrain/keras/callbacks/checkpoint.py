"""Training that goes on where it was stopped: what a run of `fit` needs, of all ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import keras

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE
from hvdtrain.core.dropin.counts import check_counts
from hvdtrain.core.dropin.preempting import Preemption
from hvdtrain.core.dropin.resuming import check_fits, restore_compression, restore_generators
from hvdtrain.core.dropin.saved import LoopCheckpoint, find_checkpoint
from hvdtrain.core.dropin.saving import LoopWriter, Taken
from hvdtrain.core.errors import SpecError
from hvdtrain.core.process.preemption import told_to_stop
from hvdtrain.core.run.framework import versions_of
from hvdtrain.keras.attach import engines_of, shardings_of
from hvdtrain.keras.callbacks.base import Callback
from hvdtrain.keras.callbacks.old_checkpoint import open_old
from hvdtrain.keras.callbacks.run_state import (
    arrays_of,
    assign,
    by_place,
    gradients_of,
    layout_of_buckets,
    metrics_of,
    own_arrays,
    own_window,
)
from hvdtrain.keras.sharding import whole_state
from hvdtrain.tensorflow.dropin.agreement import parameters_of
from hvdtrain.tensorflow.generators import Generators
from hvdtrain.tensorflow.world import all_ranks


class Checkpoint(Callback):
    """Saves a run's state in `checkpoint-STEP` directories, and goes on from it when `fit` is called again.

    A checkpoint has weights, the optimizer's variables, the epoch, the position of a dataset, and of every
    rank what is its own: compression residuals, a window of micro-batches under way, and random generators.
    It is written in the background, and every byte is verified before anything is restored.
    `hvdtrain checkpoints DIRECTORY` lists what there is. States that earlier versions saved are read as well.

    With `dataset`, SIGTERM or SIGUSR1 to any rank makes all ranks save after the same update, and `fit`
    raises `SystemExit` with status 85. Without it, a rank that gets a signal ends at once with that status.
    """

    def __init__(
        self,
        directory: str | Path,
        save_epochs: int = 1,
        resume: bool | str | Path = True,
        *,
        dataset: Any = None,
        save_steps: int | None = None,
        save_total_limit: int | None = 2,
    ) -> None:
        """Choose where and how often.

        Args:
            directory: of the checkpoints; one job at a time writes there.
            save_epochs: epochs from one save to the next.
            resume: True or `"auto"`: `fit` goes on from the newest whole checkpoint, where there is one. Or
                the path of one. False: checkpoints that are there are replaced.
            dataset: what `fit` trains on, of `hvdtrain.tensorflow.dataset`: its position belongs to the
                checkpoint. Without it the order of data is the program's own concern, and `fit` goes on with
                the next epoch.
            save_steps: also save every so many updates; needs `dataset`.
            save_total_limit: how many checkpoints are kept, the newest ones; None: all.

        Raises:
            SpecError: a number is not above 0, `save_steps` is given without `dataset`, or `dataset` has no
                position.
        """
        super().__init__()
        limits = {"save_steps": save_steps, "save_total_limit": save_total_limit}
        check_counts("callbacks.Checkpoint", {"save_epochs": save_epochs}, limits)
        if save_steps and dataset is None:
            raise SpecError(
                "callbacks.Checkpoint: save_steps: within an epoch the position in the data must be known: "
                "give dataset=, made by hvdtrain.keras.dataset"
            )
        if dataset is not None and not hasattr(dataset, "within_epoch"):
            raise SpecError(
                "callbacks.Checkpoint: dataset: expected what hvdtrain.keras.dataset makes "
                f"(found {type(dataset).__name__})"
            )
        self.directory, self.save_epochs, self.resume = Path(directory), save_epochs, resume
        self.dataset, self.save_steps, self.save_total_limit = dataset, save_steps, save_total_limit
        self._found: LoopCheckpoint | None = None
        self._looked = False
        self._saved = self._epoch = 0
        # Keras warns where the rest of an epoch has fewer batches than a whole one.
        self._quiet = ExitStack()

    def set_model(self, model: keras.Model) -> None:
        """Called by Keras before any callback begins, so that restoring comes after a broadcast."""
        super().set_model(model)
        self._looked = False
        for engine in engines_of(model) if self.dataset is not None else ():
            if not engine.tells_of_requests:
                engine.tells_of_requests, model.train_function = True, None
        self.attached.before_first_step.append(self._restore)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Tell `fit` where to begin."""
        if (checkpoint := self._find()) is not None:
            epoch, position = checkpoint.record["epoch"], checkpoint.record["position"]
            if self.dataset is not None:
                # Saved without a dataset, it is the end of an epoch.
                found = position or {"samples_consumed": epoch * self.dataset.order["samples"]}
                self.dataset.load_state_dict(found)
            # Keras' own way for callbacks; see its BackupAndRestore.
            self.model._initial_epoch = epoch
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """An epoch begins, perhaps in its middle."""
        if self.dataset is not None:
            self._epoch = self.dataset.epoch
        if self.dataset is not None and self.dataset.within_epoch:
            self._quiet.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Your input ran out of data")

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Pass on a signal to stop, and end the rest of an epoch where its data ends.

        Raises:
            StopIteration: Keras takes it so. A step that finds no data would draw dropout in vain.
        """
        if told_to_stop():
            gradients_of(self.model).accumulation.told.assign(1.0)
        if self.dataset is not None and self.dataset.epoch > self._epoch:
            raise StopIteration

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if `save_steps` says so, or if ranks were told to stop; they then leave `fit`.

        Raises:
            SystemExit: with status 85, if ranks were told to stop; the checkpoint is on disk.
        """
        if self.dataset is None:
            return
        gradients = gradients_of(self.model)
        told = gradients.accumulation.ranks_told.numpy() if gradients.over_all_ranks else None
        # The last update of an epoch ends it first.
        stop = self._preemption.agree(told) and self.dataset.within_epoch
        steps = self.save_steps or 0
        due = steps and gradients.applied // steps > self._saved // steps
        if stop or (due and not gradients.accumulation.micro_batches):
            self._save(self.dataset.epoch, logs)
        if stop:
            self._leave()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if `save_epochs` says so, or if ranks were told to stop in this epoch's last update.

        Raises:
            SystemExit: with status 85, if ranks were told to stop; the checkpoint is on disk.
        """
        self._quiet.close()
        stop = self._preemption.reached and epoch + 1 < self.params["epochs"]
        if stop or (epoch + 1) % self.save_epochs == 0:
            self._save(epoch + 1, logs)
        if stop:
            self._leave()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Wait for the last checkpoint; the next `fit` begins where it says."""
        self.model._initial_epoch = None
        self._writer.wait()
        self._preemption.pause()
        super().on_train_end(logs)

    def save(self, epoch: int) -> None:
        """Save now; every rank calls it. It is written in the background.

        Args:
            epoch: how many are done.

        Raises:
            CheckpointError: the disk is full or the directory cannot be written; what was there is as it was.
        """
        self._save(epoch, None)

    def _save(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        gradients, model = gradients_of(self.model), self.model
        record = {
            "loop": "keras",
            "epoch": epoch,
            "position": None if self.dataset is None else self.dataset.state_dict(),
            "order": None if self.dataset is None else self.dataset.order,
            "layout": layout_of_buckets(gradients),
        }

        def take() -> Taken:
            variables = {WEIGHTS_FILE: model.weights, OPTIMIZER_FILE: model.optimizer.variables}
            return record, {file: ArrayStream.of(arrays_of(each)) for file, each in variables.items()}

        self._saved = gradients.applied
        with whole_state(shardings_of(model)):
            self._writer.save(self._saved, take, own_arrays(model, gradients), metrics_of(logs))

    def _leave(self) -> NoReturn:
        for act in self.attached.before_leaving:
            act()
        self._preemption.leave(gradients_of(self.model).applied)

    @cached_property
    def _preemption(self) -> Preemption:
        versions = versions_of("tensorflow", "keras")
        writer = LoopWriter(self.directory, all_ranks(), "keras", versions, self.save_total_limit)
        writer.begin()
        return Preemption(writer)

    @property
    def _writer(self) -> LoopWriter:
        return self._preemption.writer

    def _find(self) -> LoopCheckpoint | None:
        """What this `fit` goes on from; the first callback that begins may be another than this."""
        writer = self._writer
        if not self._looked:
            self._looked, writer.overwrite = True, self.resume is False
            writer.wait()
            which = self.resume if isinstance(self.resume, str | Path) else "auto"
            self._found = (
                find_checkpoint(writer.ranks, self.directory, which, "keras", open_old)
                if self.resume is not False
                else None
            )
        return self._found

    def _restore(self) -> None:
        found = self._find()
        if found is None:
            return
        gradients = gradients_of(self.model)
        saved, weights = by_place(found.shapes[WEIGHTS_FILE]), parameters_of(self.model.weights)
        shapes = {saved.get(i, f"{i}.{p.name}"): p.shape for i, p in enumerate(weights)}
        order = None if self.dataset is None else self.dataset.order
        check_fits(found, shapes, layout_of_buckets(gradients), order)
        assign(self.model.weights, found, WEIGHTS_FILE)
        assign(self.model.optimizer.variables, found, OPTIMIZER_FILE)
        restore_compression(found, gradients.driver)
        gradients.accumulation.write(own_window(found, gradients))
        restore_generators(found, Generators(self.model), (order or {}).get("seed", 0))
        self._saved = self._writer.goes_on_from = gradients.applied
        # Its files are closed: rotation deletes it while training goes on.
        self._found = replace(found, files={})
