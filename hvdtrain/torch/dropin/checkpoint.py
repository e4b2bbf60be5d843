"""Checkpoints of a loop of the user's own: everything that it needs to go on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE, layout_of
from hvdtrain.core.dropin.counts import check_counts
from hvdtrain.core.dropin.plain import put_together, take_apart
from hvdtrain.core.dropin.preempting import Preemption
from hvdtrain.core.dropin.resuming import (
    Restored,
    check_fits,
    check_objects,
    compression_name,
    own_generators,
    restore_compression,
    restore_generators,
)
from hvdtrain.core.dropin.saved import find_checkpoint
from hvdtrain.core.dropin.saving import LoopWriter, Taken
from hvdtrain.core.errors import CheckpointError, SpecError, TrainingError
from hvdtrain.core.run.framework import versions_of
from hvdtrain.torch.dropin.arrays import stream_of, tensor_of
from hvdtrain.torch.dropin.gradients import Gradients
from hvdtrain.torch.dropin.naming import check_optimizer
from hvdtrain.torch.dropin.optimizer_state import (
    check_named_state,
    group_names,
    load_named_state,
    named_state,
)
from hvdtrain.torch.dropin.session import require_init, waiting_for_ranks
from hvdtrain.torch.generators import Generators
from hvdtrain.torch.world import all_ranks

_LOADER = "loader"


class Checkpoint:
    """Saves a loop's state in `checkpoint-STEP` directories, and restores it on any number of ranks.

    A checkpoint has the model's weights and buffers, the optimizer's state and options under the parameters'
    names, the position of the loader, the state of other objects, and of every rank its compression residuals
    and its random generators (PyTorch's, NumPy's and Python's). Nothing is pickled. Every byte is verified
    before anything is restored. `hvdtrain checkpoints DIRECTORY` lists what there is.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loader: Any = None,
        *,
        directory: str | Path,
        save_total_limit: int | None = None,
        **objects: Any,
    ) -> None:
        """Choose what belongs to a checkpoint; every rank gives the same.

        Args:
            model: with all of the optimizer's parameters; several models as a `torch.nn.ModuleDict`.
            optimizer: wrapped by `DistributedOptimizer` or not.
            loader: a `hvdtrain.torch.DataLoader`, or anything with `state_dict` and `load_state_dict`.
            directory: where checkpoints are; one job at a time writes there.
            save_total_limit: how many checkpoints are kept, the newest ones; None: all.
            **objects: whatever else has `state_dict` and `load_state_dict`, alike on all ranks, by a name of
                yours: `lr_scheduler=...`, `scaler=...`.

        Raises:
            CheckpointError: another job writes into the directory, or it cannot be written.
            SpecError: an argument is of another type, or the model lacks a parameter of the optimizer's.
            TrainingError: `init()` was not called.
        """
        require_init("Checkpoint")
        check_optimizer(optimizer, "Checkpoint")
        if not isinstance(model, torch.nn.Module):
            raise SpecError(f"Checkpoint: model: expected a torch.nn.Module (found {type(model).__name__})")
        check_counts("Checkpoint", {}, {"save_total_limit": save_total_limit})
        # Compiled modules have the names of their own.
        self._model, self._optimizer = getattr(model, "_orig_mod", model), optimizer
        self._loader = loader
        self._objects = objects if loader is None else {**objects, _LOADER: loader}
        for name, each in self._objects.items():
            if not (hasattr(each, "state_dict") and hasattr(each, "load_state_dict")):
                raise SpecError(
                    f"Checkpoint: {name}: a {type(each).__name__} has no state_dict and load_state_dict"
                )
        group_names(optimizer, self._model)
        versions = versions_of("torch")
        self._writer = LoopWriter(Path(directory), all_ranks(), "torch", versions, save_total_limit)
        self._writer.begin()
        self._preemption = Preemption(self._writer)

    @waiting_for_ranks("Checkpoint.reached_preemption")
    def reached_preemption(self) -> bool:
        """Whether SIGTERM or SIGUSR1 has told any rank to stop; every rank calls it after each update.

        The answer is the same on all ranks. Once it is True, call `save`, which then ends the program. Before
        the first call, a signal ends the process at once; after it, a second signal does.
        """
        found = self._gradients
        if found is not None and found.accumulation.micro_batches:
            # In the middle of an update nothing can be saved.
            return False
        return self._preemption.agree(found.told if found is not None and found.over_all_ranks else None)

    @waiting_for_ranks("Checkpoint.save")
    def save(self, step: int, *, metrics: Mapping[str, float] | None = None, extra: Any = None) -> None:
        """Save after an update; every rank calls it at the same one, and an error is raised on all.

        The state is copied, and written in the background while training goes on; the next `save` waits.
        After `reached_preemption` has returned True, `save` ends the program when the checkpoint is on disk.

        Args:
            step: updates that were taken.
            metrics: shown by `hvdtrain checkpoints`, such as `{"loss": 0.5}`.
            extra: numbers, texts, lists, dictionaries and tensors, which `restore` returns; rank 0's counts.

        Raises:
            CheckpointError: something cannot be stored, or the last checkpoint could not be written.
            SystemExit: with status 85, after `reached_preemption` has returned True.
            TrainingError: micro-batches of an update are under way.
        """
        gradients = self._gradients
        if gradients is not None and gradients.accumulation.micro_batches:
            raise TrainingError(
                "Checkpoint.save: an update is under way, whose micro-batches are not part of a checkpoint: "
                "save after optimizer.step()"
            )
        if hasattr(self._optimizer, "consolidate_state_dict"):
            self._optimizer.consolidate_state_dict(to=0)
        # Asking for a state may be a collective.
        objects = {name: each.state_dict() for name, each in self._objects.items()}

        def take() -> Taken:
            arrays: dict[str, torch.Tensor] = {}
            record = {
                "loop": "torch",
                "optimizer": self._optimizer_state(arrays),
                "objects": take_apart(objects, "objects", torch.is_tensor, arrays),
                "extra": take_apart(extra, "extra", torch.is_tensor, arrays),
                "order": getattr(self._loader, "order", None),
                "layout": self._layout,
                "applied": gradients.applied if gradients is not None else None,
            }
            return record, {WEIGHTS_FILE: stream_of(self._weights()), OPTIMIZER_FILE: stream_of(arrays)}

        self._writer.save(step, take, self._own(), metrics or {})
        if self._preemption.reached:
            self._preemption.leave(step)

    @waiting_for_ranks("Checkpoint.restore")
    def restore(self, which: str | Path = "auto") -> Restored | None:
        """Go on from a checkpoint; every rank calls it before it takes a batch.

        Args:
            which: `"auto"`: the newest whole checkpoint in the directory; damaged ones are skipped with a
                warning. Or the path of a `checkpoint-STEP`.

        Returns:
            Its `step` and `extra`; None with `"auto"` where there is no checkpoint.

        Raises:
            CheckpointError: it is damaged, or does not fit the model, the optimizer or the data.
        """
        self._writer.wait()
        found = find_checkpoint(self._writer.ranks, self._writer.directory, which, "torch")
        if found is None:
            return None
        record, weights = found.record, self._weights()
        order = getattr(self._loader, "order", None)
        check_objects(found, self._objects)
        check_fits(found, {name: tuple(t.shape) for name, t in weights.items()}, self._layout, order)
        check_named_state(record["optimizer"], self._optimizer, self._model, found.directory)

        def read(name: str) -> torch.Tensor:
            return tensor_of(found.read(OPTIMIZER_FILE, name))

        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(tensor_of(found.read(WEIGHTS_FILE, name)))
        load_named_state(record["optimizer"], self._optimizer, self._model, read)
        for name, each in self._objects.items():
            each.load_state_dict(put_together(record["objects"][name], read, each.state_dict()))
        if self._gradients is not None:
            restore_compression(found, self._gradients.driver)
            applied = record["applied"]
            self._gradients.applied = record["step"] if applied is None else applied
        restore_generators(found, Generators(self._model), (order or {}).get("seed", 0))
        self._writer.goes_on_from = record["step"]
        return Restored(record["step"], put_together(record["extra"], read))

    @waiting_for_ranks("Checkpoint.wait")
    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; every rank calls it at the end.

        Raises:
            CheckpointError: it could not be written.
        """
        self._writer.wait()
        self._preemption.pause()

    @property
    def _gradients(self) -> Gradients | None:
        """Those of a wrapped optimizer."""
        return getattr(self._optimizer, "_gradients", None)

    @property
    def _layout(self) -> str | None:
        gradients = self._gradients
        if gradients is None:
            return None
        return layout_of([bucket.layout for bucket in gradients.filling.buckets], gradients.settings.rules)

    def _weights(self) -> dict[str, torch.Tensor]:
        found = self._model.state_dict()
        for name, value in found.items():
            if not torch.is_tensor(value):
                raise CheckpointError(
                    f"Checkpoint: {name} of the model is extra state, and no tensor: save it by `extra`"
                )
        return found

    def _optimizer_state(self, arrays: dict[str, torch.Tensor]) -> Any:
        """The record of the optimizer, on rank 0, which knows all of its state."""
        named = named_state(self._optimizer, self._model)
        state = {
            name: take_apart(value, name, torch.is_tensor, arrays) for name, value in named["state"].items()
        }
        return {
            **named,
            "state": state,
            "groups": take_apart(named["groups"], "groups", torch.is_tensor, arrays),
        }

    def _own(self) -> dict[str, np.ndarray]:
        """What differs by rank."""
        states = self._gradients.driver.read() if self._gradients is not None else ()
        residuals = {
            compression_name(i, name): array
            for i, state in enumerate(states)
            for name, array in state.items()
        }
        return residuals | own_generators(Generators(self._model))
