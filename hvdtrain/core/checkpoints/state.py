"""What a run needs beside the weights to go on: moments, residuals and where it stands, in either framework.

Arrays lie in the Hugging Face layout under the weights' names, so a run may go on in the other framework and
on another number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import SavedArrays
from hvdtrain.core.checkpoints.manifest import FORMAT, MANIFEST_FILE, SPEC_FILE, STATE_FILE, Manifest
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.rank_files import COMPRESSION, GENERATORS, OPTIMIZER, named_after, rank_file
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.state import RunState
from hvdtrain.core.update.buckets import Bucket
from hvdtrain.core.update.precision import LossScale

OPTIMIZER_FILE, COMPRESSION_FILE = "optimizer.safetensors", "compression.safetensors"
# Of every rank, before the format since which each has a file of its own.
_GENERATORS_FILE, _OWN_FILES = "generators.safetensors", 3
# Shell patterns of what a checkpoint has beside its model.
TRAINING_FILES = (
    MANIFEST_FILE,
    SPEC_FILE,
    STATE_FILE,
    OPTIMIZER_FILE,
    COMPRESSION_FILE,
    _GENERATORS_FILE,
    rank_file("*"),
)
# Torch's names of each optimizer's moments.
MOMENTS = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "sgd": ("momentum_buffer",),
    "lars": ("momentum_buffer",),
}
Arrays = dict[str, np.ndarray]
# Every rank's array of one name, in the order of ranks, each of which is read when it is called for.
Rows = Sequence[Callable[[], np.ndarray]]


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

    Before format 3 ranks had no files: what differs by rank lies among the rest, with a first axis of ranks,
    and all generators in a file.

    Attributes:
        record: where the run stands.
        moments: the optimizer's, as `WEIGHT.exp_avg`, where they are alike on all ranks.
        compression: what is alike on all ranks of its state, as `BUCKET.NAME`.
        own: each rank's file.
        old_generators: of all ranks, as `RANK.NAME`.
    """

    record: StateRecord
    moments: SavedArrays
    compression: SavedArrays
    own: Sequence[SavedArrays]
    old_generators: Mapping[str, np.ndarray]

    @property
    def is_compressed(self) -> bool:
        """Whether there is a state of compression."""
        return bool(self.compression or self._own_shapes(COMPRESSION))

    @property
    def moment_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each moment; with a first axis of ranks where they differ by rank."""
        own = {name: (len(self.own), *shape) for name, shape in self._own_shapes(OPTIMIZER).items()}
        return {**self.moments.shapes, **own}

    def own_moments(self, name: str) -> Rows:
        """Every rank's moment of this name, where they differ by rank."""
        return self._rows(self.moments, name, OPTIMIZER)

    def alike(self, bucket: int, residuals: Collection[str]) -> Arrays:
        """Read the compression state of the bucket of this number, but for the arrays of these names."""
        places = named_after({place: place for place in self.compression}, f"{bucket}.")
        return {name: self.compression[place] for name, place in places.items() if name not in residuals}

    def residuals(self, bucket: int, names: Collection[str]) -> dict[str, Rows]:
        """Every rank's arrays of these names in that state."""
        places = {name: f"{bucket}.{name}" for name in names}
        found = {*self.compression, *self._own_shapes(COMPRESSION)}
        return {n: self._rows(self.compression, p, COMPRESSION) for n, p in places.items() if p in found}

    def generators(self, rank: int) -> Arrays:
        """The states of a rank's random generators; none in format 1."""
        own, old = self.own, self.old_generators
        return named_after(own[rank], GENERATORS) if own else named_after(old, f"{rank}.")

    def _own_shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        return named_after(self.own[0].shapes, prefix) if self.own else {}

    def _rows(self, alike: SavedArrays, name: str, prefix: str) -> Rows:
        if name in alike:
            return [partial(alike.row, name, rank) for rank in range(alike.shapes[name][0])]
        return [partial(own.__getitem__, f"{prefix}{name}") for own in self.own]


def load_state(directory: Path, manifest: Manifest | None = None) -> TrainingState:
    """Open what a run has saved beside its weights; arrays are read when they are asked for.

    Args:
        directory: a `checkpoint-N`.
        manifest: its own, which says how many ranks have files; None: it has none.

    Raises:
        CheckpointError: a file is missing or damaged, as in a directory that holds only a model.
    """
    _check_is_of_a_job(directory)
    try:
        record = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        buckets, layout, order = (record.pop(name) for name in ("buckets", "layout", "order"))
        applied = tuple(record.pop("applied", ()))
        record.pop("format", None)
        generators = directory / _GENERATORS_FILE
        ranks = manifest.ranks if manifest and manifest.format >= _OWN_FILES else 0
        return TrainingState(
            StateRecord(_run_state(**record), buckets, layout, order, applied),
            SavedArrays(directory / OPTIMIZER_FILE),
            SavedArrays(directory / COMPRESSION_FILE),
            [SavedArrays(directory / rank_file(rank)) for rank in range(ranks)],
            SavedArrays(generators) if generators.exists() else {},
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
