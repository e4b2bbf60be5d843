"""Checkpoints of other numbers of ranks, in one job: of all 3 ranks, and of a group of 2. Run on 3 ranks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

import hvdtrain.torch as hvd
from tests.dropin.torch_sharding import deep, run
from tests.dropin.trial import adamw, assert_same, wrap


def check_checkpoints_go_to_fewer_ranks_and_back() -> None:
    directory = Path(hvd.broadcast_object(tempfile.mkdtemp()))
    groups = [hvd.add_process_set(ranks) for ranks in ([0, 1], [2])]
    group = groups[hvd.rank() // 2]
    on_three, _ = train(None, 1, hvd.global_process_set)
    save(on_three, directory / "three.pt")
    hvd.barrier()
    _, whole = train(directory / "three.pt", 0, group)
    on_two, sharded = train(directory / "three.pt", 1, group)
    assert_same(sharded, whole, 1e-12)
    # With zero_stage=0 too, a rank has all.
    save(on_two, directory / "two.pt")
    hvd.barrier()
    _, whole = train(directory / "two.pt", 0, hvd.global_process_set)
    last, sharded = train(directory / "two.pt", 1, hvd.global_process_set)
    assert_same(sharded, whole, 1e-12)
    assert 0 < len(last.state) < len([*sharded.parameters()])


def train(start: Path | None, stage: int, ranks: Any) -> tuple[Any, torch.nn.Module]:
    """Some updates from a checkpoint, or from the beginning."""
    model = deep()
    optimizer = wrap(adamw(model.parameters()), model, zero_stage=stage, process_set=ranks)
    if start is not None:
        found = torch.load(start)
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        assert len(found["optimizer"]["state"]) == len([*model.parameters()])
    run(optimizer, model)
    optimizer.model = model
    return optimizer, model


def save(optimizer: Any, path: Path) -> None:
    """By rank 0, as programs do."""
    optimizer.consolidate_state_dict(to=0 if hvd.rank() < 2 else 2)
    if hvd.rank() == 0:
        torch.save({"model": optimizer.model.state_dict(), "optimizer": optimizer.state_dict()}, path)
