"""What a run needs beside the weights to go on: moments, residuals and where it stands, in either framework.

Arrays lie in the Hugging Face layout under the weights' names, so a run may go on in the other framework and
on another number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.state import RunState
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.precision import LossScale

OPTIMIZER_FILE, COMPRESSION_FILE, STATE_FILE = (
    "optimizer.safetensors",
    "compression.safetensors",
    "state.json",
)
# Torch's names of each optimizer's moments.
MOMENTS = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "lars": ("momentum_buffer",),
}
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainingState:
    """Everything beside the weights.

    Attributes:
        run: where the run stands. Of its loss scale it has what `LossScale.saved` returns, and `applied`
            is 0: the field below holds every rank's.
        moments: the optimizer's, as `WEIGHT.exp_avg`; with a first axis of ranks where they differ by rank.
        compression: one mapping a bucket. What differs by rank has a first axis of ranks.
        layout: a text that says which weights lie in which bucket, and how each travels.
        order: a text that says in which order which samples come.
        applied: updates that each rank's optimizer has applied; empty where moments are alike on all ranks.
    """

    run: RunState
    moments: Arrays
    compression: tuple[Arrays, ...]
    layout: str
    order: str
    applied: tuple[int, ...] = ()


def save_state(directory: Path, state: TrainingState) -> None:
    """Write a state's three files into a directory that is being made; `OSError` is the caller's."""
    save_file(_contiguous(state.moments), directory / OPTIMIZER_FILE)
    numbered = {f"{i}.{name}": a for i, arrays in enumerate(state.compression) for name, a in arrays.items()}
    save_file(_contiguous(numbered), directory / COMPRESSION_FILE)
    record = _numbers(state.run) | {
        "buckets": len(state.compression),
        "layout": state.layout,
        "order": state.order,
    }
    if state.applied:
        record["applied"] = list(state.applied)
    (directory / STATE_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_state(directory: Path) -> TrainingState:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: a file is missing or damaged, as in a directory that holds only a model.
    """
    try:
        record = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        moments, numbered = load_file(directory / OPTIMIZER_FILE), load_file(directory / COMPRESSION_FILE)
        compression: list[Arrays] = [{} for _ in range(record.pop("buckets"))]
        for key, array in numbered.items():
            index, name = key.split(".", 1)
            compression[int(index)][name] = array
        layout, order = record.pop("layout"), record.pop("order")
        applied = tuple(record.pop("applied", ()))
        return TrainingState(_run_state(**record), moments, tuple(compression), layout, order, applied)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"--resume {directory}: not a whole checkpoint-N directory of a run "
            f"({type(error).__name__}: {error}); checkpointing.save_steps makes them"
        ) from None


def check_checkpoint(directory: Path) -> None:
    """Refuse a path that is clearly no checkpoint, without reading what it holds.

    Raises:
        CheckpointError: a file of it is missing or cannot be read.
    """
    for name in (STATE_FILE, OPTIMIZER_FILE, COMPRESSION_FILE, WEIGHTS_FILE):
        try:
            with (directory / name).open("rb"):
                pass
        except OSError as error:
            what = f"{name if directory.is_dir() else 'the directory itself'}: {error.strerror}"
            raise CheckpointError(
                f"--resume {directory}: not a whole checkpoint-N directory of a run ({what}); "
                "checkpointing.save_steps makes them"
            ) from None


def layout_of(buckets: Sequence[Bucket], rules: Rules) -> str:
    """A text that is equal where compression states fit each other: buckets, weights, policies."""
    return json.dumps(
        [[rules.policy(b).model_dump(mode="json"), [w.name for w in b.weights]] for b in buckets]
    )


def share_out(policy: Policy, arrays: Mapping[str, np.ndarray], ranks: int) -> list[Arrays]:
    """One bucket's saved compression state for each of so many ranks.

    Residuals go back to the ranks they came from; where their number has changed, every rank gets the same
    share of their sum (counts go to rank 0), because their sum over ranks must not change.

    Args:
        policy: the bucket's.
        arrays: residuals with a first axis of the ranks that saved them, the rest as it was on all ranks.
        ranks: how many there are now.

    Returns:
        The state of each rank.
    """
    found: list[Arrays] = [{} for _ in range(ranks)]
    for name, array in arrays.items():
        counts = name in policy.counters
        rows = _rows(array, ranks, counts) if name in policy.residuals else [array] * ranks
        for state, row in zip(found, rows, strict=True):
            state[name] = np.asarray(row)
    return found


def share_moments(state: TrainingState, rules: Rules, ranks: int) -> list[tuple[Arrays, int]]:
    """The saved moments for so many ranks, each with the number of updates its optimizer counts.

    After local updates each rank gets its own again. Where the number of ranks has changed, or ranks update
    together from here on and so need the same, every rank gets the mean over those that saved.

    Args:
        state: what was saved.
        rules: by which the run goes on.
        ranks: how many there are now.

    Returns:
        One pair a rank, or a single one that is for all.
    """
    applied, step = state.applied, state.run.step
    if not applied:
        return [(state.moments, step)]
    # A policy goes by the number of a rank's own updates: it must be local for the rank with the fewest, too.
    local = rules.at(min(applied) + 1).local
    if local and len(applied) == ranks:
        return [({n: a[rank] for n, a in state.moments.items()}, applied[rank]) for rank in range(ranks)]
    means = {name: array.mean(axis=0) for name, array in state.moments.items()}
    return [(means, sum(applied) // len(applied) if local else step)]


def _numbers(run: RunState) -> dict[str, Any]:
    return {
        "step": run.step,
        "windows": run.windows,
        "samples_consumed": run.samples_consumed,
        "loss_scale": run.loss_scale.value,
        "good_updates": run.loss_scale.good_updates,
        "skipped_updates": run.skipped_updates,
        "empty_updates": run.empty_updates,
    }


def _run_state(
    *,
    step: int,
    windows: int,
    samples_consumed: int,
    loss_scale: float = 0.0,
    good_updates: int = 0,
    skipped_updates: int = 0,
    empty_updates: int = 0,
) -> RunState:
    """What `_numbers` gave; earlier versions did not write those that have a default."""
    return RunState(
        step=step,
        windows=windows,
        samples_consumed=samples_consumed,
        skipped_updates=skipped_updates,
        empty_updates=empty_updates,
        loss_scale=LossScale(loss_scale, good_updates),
    )


def _rows(array: np.ndarray, ranks: int, counts: bool) -> Sequence[np.ndarray]:
    if len(array) == ranks:
        return list(array)
    total = array.sum(axis=0)
    if counts:
        return [total, *[np.zeros_like(total)] * (ranks - 1)]
    return [total / ranks] * ranks


def _contiguous(arrays: Mapping[str, np.ndarray]) -> Arrays:
    # np.ascontiguousarray would give a scalar an axis.
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}
