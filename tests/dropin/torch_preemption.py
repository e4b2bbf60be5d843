"""Loops whose rank 1 is told to stop: all ranks save after the same update, and go on as if nothing was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

import hvdtrain.torch as hvd
from hvdtrain.core.checkpoints.listing import list_checkpoints
from tests.dropin.preemption import preempted, tell
from tests.dropin.torch_checkpoint import Loop, shared_directory
from tests.dropin.torch_misuse import told
from tests.dropin.trial import FEATURES, adamw, assert_same, mlp


class Preemptible(Loop):
    """A loop that asks after every batch, also where it does not end an update."""

    def run(self, updates: int, told: int | None = None) -> Preemptible:
        """Take updates in all; rank 1 is told to stop after one of them."""
        steps, batches = self.optimizer._gradients.settings.gradient_accumulation_steps, 0
        while len(self.losses) < updates:
            for x, y in self.loader:
                self.optimizer.batch_samples = self.loader.batch_samples
                loss = functional.cross_entropy(self.model(x), y)
                loss.backward()
                batches += 1
                if batches % steps == 0:
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    self.scheduler.step()
                    self.losses.append(loss.item())
                    if len(self.losses) == told and hvd.rank() == 1:
                        tell()
                if self.checkpoint.reached_preemption():
                    self.save()
                if len(self.losses) == updates:
                    break
        return self


def check_a_loop_whose_rank_is_told_to_stop_goes_on_as_if_it_had_not() -> None:
    wrappers: list[dict[str, Any]] = [
        {"zero_stage": 1},
        {"compression": {"type": "topk", "ratio": 0.3}},
        {"gradient_accumulation_steps": 2},
    ]
    for wrapper in wrappers:
        directory = shared_directory()
        whole = Preemptible(directory, **wrapper).run(7)
        with preempted():
            Preemptible(directory, **wrapper).run(7, told=3)
        # It travels with the next update.
        assert saved(directory) == [4]
        resumed = Preemptible(directory, **wrapper).restored().run(7)
        assert resumed.losses[4:] == whole.losses[4:], wrapper
        assert_same(resumed.model, whole.model, 0.0)


def saved(directory: Path) -> list[int]:
    found = [each.step for each in list_checkpoints(directory, every_byte=True) if each.state == "whole"]
    hvd.allgather_object(None)
    return found


def check_ranks_whose_optimizer_sums_nothing_agree_as_well() -> None:
    directory, model = shared_directory(), mlp()
    checkpoint = hvd.Checkpoint(model, adamw(model.parameters()), directory=directory)
    assert not checkpoint.reached_preemption()
    if hvd.rank() == 1:
        tell()
    with preempted():
        assert checkpoint.reached_preemption()
        checkpoint.save(3)
    assert saved(directory) == [3]


def check_a_checkpoint_that_cannot_be_written_ends_nothing() -> None:
    directory, model = shared_directory(), torch.nn.Linear(FEATURES, 3)
    checkpoint = hvd.Checkpoint(model, adamw(model.parameters()), directory=directory)
    assert not checkpoint.reached_preemption()
    tell()
    with preempted():
        assert checkpoint.reached_preemption()
        told(("extra: a function cannot be saved",), lambda: checkpoint.save(1, extra=mlp))
        checkpoint.save(2)
    assert saved(directory) == [2]
