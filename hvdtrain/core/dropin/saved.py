"""A checkpoint of a loop of the user's own, verified, as every rank knows it; rank 0 alone reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Registers bfloat16 with NumPy.
import ml_dtypes  # noqa: F401
import numpy as np
from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import SavedArrays
from hvdtrain.core.checkpoints.finding import AUTO, Found, check_whole, checkpoints_in, newest_whole
from hvdtrain.core.checkpoints.manifest import STATE_FILE, Manifest
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.rank_files import rank_file, tell
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.ranks import Ranks

_ADVICE = "give another checkpoint, or 'auto', which takes the newest whole one"


@dataclass(frozen=True)
class Opened:
    """A checkpoint's files, on rank 0.

    Attributes:
        directory: of it.
        record: what its `state.json` says.
        ranks: how many saved it.
        files: `SavedArrays`, or what is read like them, by the file's name.
    """

    directory: Path
    record: Mapping[str, Any]
    ranks: int
    files: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """What every rank is to know, JSON-ready."""
        names = (WEIGHTS_FILE, OPTIMIZER_FILE, rank_file(0))
        shapes = {name: self.files[name].shapes for name in names}
        return {
            "directory": str(self.directory),
            "record": self.record,
            "ranks": self.ranks,
            "shapes": shapes,
        }


OpenOld = Callable[[Path], Opened | None]


@dataclass(frozen=True)
class LoopCheckpoint:
    """A checkpoint of which every byte has been verified, as every rank knows it.

    Attributes:
        directory: of it.
        record: what its `state.json` says.
        saved_ranks: how many ranks saved it.
        ranks: all of this job.
        shapes: of its arrays, by file and name; of the ranks' files that of rank 0.
        files: opened, on rank 0; empty on the others.
    """

    directory: Path
    record: Mapping[str, Any]
    saved_ranks: int
    ranks: Ranks
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    files: Mapping[str, Any]

    @property
    def same_ranks(self) -> bool:
        """Whether there are as many ranks as saved it."""
        return self.saved_ranks == self.ranks.size

    def read(self, file: str, name: str) -> np.ndarray:
        """An array on every rank; every rank calls it."""
        array = self.files[file][name] if self.ranks.is_chief else np.zeros(0)
        shape, dtype = tell(self.ranks, [array.shape, array.dtype.name])
        return self.ranks.broadcast(array if self.ranks.is_chief else np.empty(shape, dtype))

    def mine(self, name: str) -> np.ndarray:
        """This rank's array of that name, where `same_ranks`; every rank calls it."""
        for rank in range(self.saved_ranks):
            array = self.read(rank_file(rank), name)
            if rank == self.ranks.rank:
                found = array
            # Before the next one comes.
            del array
        return found

    def total(self, name: str) -> np.ndarray:
        """The sum of all ranks' arrays of that name; every rank calls it."""
        arrays = (self.read(rank_file(rank), name) for rank in range(self.saved_ranks))
        total = next(arrays).copy()
        for array in arrays:
            total += array
        return total


def find_checkpoint(
    ranks: Ranks, directory: Path, which: str | Path, kind: str, old: OpenOld | None = None
) -> LoopCheckpoint | None:
    """Find and verify a checkpoint; every rank calls it.

    Args:
        ranks: all of the job.
        directory: of the job's checkpoints.
        which: a `checkpoint-N`, or `"auto"`: the newest whole one, where there is one.
        kind: whose checkpoints they are: `torch` or `keras`.
        old: opens what an earlier version saved in a directory, where there is such.

    Returns:
        It; None with `"auto"` where there is none.

    Raises:
        CheckpointError: it is missing or damaged, or no checkpoint of such a loop.
    """
    opened, told, which = None, {}, Path(which)
    if ranks.is_chief:
        try:
            opened = _look(directory, which, kind, old)
        except CheckpointError as error:
            told = {"problem": str(error)}
    if opened is not None:
        told = opened.told()
    told = tell(ranks, told)
    if "problem" in told:
        raise CheckpointError(told["problem"])
    if not told:
        return None
    files = opened.files if opened is not None else {}
    return LoopCheckpoint(
        Path(told["directory"]), told["record"], told["ranks"], ranks, told["shapes"], files
    )


def _look(directory: Path, which: Path, kind: str, old: OpenOld | None) -> Opened | None:
    place = directory if which == AUTO else which
    if old is not None and not checkpoints_in(place) and (opened := old(place)):
        return opened
    found = _find(directory, which)
    return found and _open(*found, kind)


def _find(directory: Path, which: Path) -> Found | None:
    if which == AUTO:
        return newest_whole(directory, say, "Checkpoint")
    if not which.is_dir():
        raise CheckpointError(f"{which}: no such directory; {_ADVICE}")
    try:
        return which, check_whole(which)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_ADVICE}") from None


def _open(directory: Path, manifest: Manifest | None, kind: str) -> Opened:
    try:
        record = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        saved_by = record.get("loop")
        if manifest is None or saved_by is None:
            raise CheckpointError(
                f"{directory}: was not saved by a loop of your own: jobs go on from it, with --resume"
            )
        if saved_by != kind:
            raise CheckpointError(
                f"{directory}: was saved by hvdtrain.{saved_by}, and hvdtrain.{kind} cannot read it"
            )
        names = [WEIGHTS_FILE, OPTIMIZER_FILE, *map(rank_file, range(manifest.ranks))]
        files = {name: SavedArrays(directory / name) for name in names}
    except (OSError, ValueError, SafetensorError, AttributeError) as error:
        raise CheckpointError(f"{directory}: cannot be read: {error}; {_ADVICE}") from None
    return Opened(directory, record, manifest.ranks, files)


def say(text: str) -> None:
    """Print a line for the user."""
    print(f"hvdtrain: {text}", flush=True)
