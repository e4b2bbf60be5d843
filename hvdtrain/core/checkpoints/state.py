"""What a run needs beside the weights to go on: moments, residuals and where it stands, in either framework.

Arrays lie in the Hugging Face layout under the weights' names, so a run may go on in the other framework and
on another number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import SavedArrays, SavedRows
from hvdtrain.core.checkpoints.manifest import FORMAT, MANIFEST_FILE, SPEC_FILE, STATE_FILE
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.state import RunState
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.precision import LossScale

OPTIMIZER_FILE, COMPRESSION_FILE, GENERATORS_FILE = (
    "optimizer.safetensors",
    "compression.safetensors",
    "generators.safetensors",
)
# What a checkpoint has beside its model.
TRAINING_FILES = frozenset(
    (MANIFEST_FILE, SPEC_FILE, STATE_FILE, OPTIMIZER_FILE, COMPRESSION_FILE, GENERATORS_FILE)
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
class StateRecord:
    """Where a run stands, and which arrays fit it.

    Attributes:
        run: where the run stands. Of its loss scale it has what `LossScale.saved` returns, and `applied`
            is 0: the field below holds every rank's.
        buckets: how many there are.
        layout: a text that says which weights lie in which bucket, and how each travels.
        order: a text that says in which order which samples come.
        applied: updates that each rank's optimizer has applied; empty where moments are alike on all ranks.
    """

    run: RunState
    buckets: int
    layout: str
    order: str
    applied: tuple[int, ...] = ()

    def text(self) -> str:
        """What the state file holds."""
        record = {"format": FORMAT} | _numbers(self.run)
        record |= {"buckets": self.buckets, "layout": self.layout, "order": self.order}
        if self.applied:
            record["applied"] = list(self.applied)
        return json.dumps(record, indent=2) + "\n"


@dataclass(frozen=True)
class TrainingState:
    """Everything beside the weights, as it lies on disk.

    Attributes:
        record: where the run stands.
        moments: the optimizer's, as `WEIGHT.exp_avg`; with a first axis of ranks where they differ by rank.
        residuals: the state of compression as `BUCKET.NAME`. What differs by rank has a first axis of ranks.
    """

    record: StateRecord
    moments: SavedArrays
    residuals: SavedArrays

    def compression(self, bucket: int, without: Collection[str] = ()) -> Arrays:
        """Read the compression state of the bucket of this number, but for the arrays of these names."""
        names = self._names(bucket)
        return {name: self.residuals[path] for name, path in names.items() if name not in without}

    def rows(self, bucket: int, names: Collection[str]) -> dict[str, SavedRows]:
        """Every rank's arrays of these names in that state, each of which is read when it is asked for."""
        return {n: self.residuals.rows(path) for n, path in self._names(bucket).items() if n in names}

    def _names(self, bucket: int) -> dict[str, str]:
        mine = f"{bucket}."
        return {path.removeprefix(mine): path for path in self.residuals if path.startswith(mine)}


def load_state(directory: Path) -> TrainingState:
    """Open what a run has saved beside its weights; arrays are read when they are asked for.

    Raises:
        CheckpointError: a file is missing or damaged, as in a directory that holds only a model.
    """
    _check_is_of_a_job(directory)
    try:
        record = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        buckets, layout, order = (record.pop(name) for name in ("buckets", "layout", "order"))
        applied = tuple(record.pop("applied", ()))
        record.pop("format", None)
        return TrainingState(
            StateRecord(_run_state(**record), buckets, layout, order, applied),
            SavedArrays(directory / OPTIMIZER_FILE),
            SavedArrays(directory / COMPRESSION_FILE),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{directory}: not a whole checkpoint-N directory of a run "
            f"({type(error).__name__}: {error}); checkpointing.save_steps makes them"
        ) from None


def check_checkpoint(directory: Path) -> None:
    """Refuse a path that is clearly no checkpoint, without reading what it holds.

    Raises:
        CheckpointError: a file of it is missing or cannot be read.
    """
    _check_is_of_a_job(directory)
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


def _check_is_of_a_job(directory: Path) -> None:
    """Refuse the checkpoint of a loop of the user's own, which has files of its own."""
    try:
        loop = json.loads((directory / STATE_FILE).read_bytes()).get("loop")
    except (OSError, ValueError, AttributeError, RecursionError):
        # Whoever reads it says what is wrong.
        return
    if loop is not None:
        raise CheckpointError(
            f"{directory}: was saved by a loop of your own (hvdtrain.{loop}): go on from it there; a job "
            "goes on from checkpoints of jobs"
        )


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


def share_moments(
    record: StateRecord, rules: Rules, ranks: int
) -> list[tuple[Callable[[Any], np.ndarray], int]]:
    """What each of so many ranks takes of a saved moment, with the number of updates its optimizer counts.

    After local updates each rank gets its own again. Where the number of ranks has changed, or ranks update
    together from here on and so need the same, every rank gets the mean over those that saved.

    Args:
        record: of the run that has saved.
        rules: by which the run goes on.
        ranks: how many there are now.

    Returns:
        One pair a rank, or a single one that is for all. What is taken is taken of the rows of a moment that
        has a first axis of ranks, one at a time, or of the whole.
    """
    applied, step = record.applied, record.run.step
    if not applied:
        return [(lambda array: array, step)]
    # A policy goes by the number of a rank's own updates: it must be local for the rank with the fewest, too.
    local = rules.at(min(applied) + 1).local
    if local and len(applied) == ranks:
        return [(itemgetter(rank), applied[rank]) for rank in range(ranks)]
    return [(lambda rows: total(rows) / len(rows), sum(applied) // len(applied) if local else step)]


def total(rows: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of arrays of one shape, of which one is there at a time; of their dtype."""
    found = np.array(rows[0])
    for row in range(1, len(rows)):
        found += rows[row]
    return found


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
    whole = total([*array])
    if counts:
        return [whole, *[np.zeros_like(whole)] * (ranks - 1)]
    return [whole / ranks] * ranks
