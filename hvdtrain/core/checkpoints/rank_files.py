"""What differs by rank in a checkpoint, of a job or of a loop of the user's own: a file for each rank."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import ArrayStream, write_arrays
from hvdtrain.core.checkpoints.manifest import FileRecord
from hvdtrain.core.errors import CheckpointError, HvdtrainError
from hvdtrain.core.run.ranks import Ranks

# What names in a rank's file begin with; behind it they are as in the files that are for all ranks.
COMPRESSION, GENERATORS, OPTIMIZER = "compression.", "generator.framework.", "optimizer."
_Value = TypeVar("_Value")


def rank_file(rank: int | str) -> str:
    """The file of a rank's own state: residuals, random generators and the like; `*`: those of all ranks."""
    return f"rank-{rank}.safetensors"


def named_after(arrays: Mapping[str, _Value], prefix: str) -> dict[str, _Value]:
    """Those whose names begin so, under the rest of their names."""
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def tell(ranks: Ranks, value: Any) -> Any:
    """Rank 0's value, which is JSON-ready, on every rank; every rank calls it."""
    message = np.frombuffer(json.dumps(value).encode(), np.uint8) if ranks.is_chief else np.zeros(0, np.uint8)
    return json.loads(ranks.broadcast_arrays({"json": message})["json"].tobytes())


def together(ranks: Ranks, act: Callable[[], Any]) -> Any:
    """What rank 0 makes, JSON-ready or None, on every rank; every rank calls it.

    Raises:
        CheckpointError: on every rank: what rank 0 has raised.
    """
    made, problem = None, ""
    if ranks.is_chief:
        try:
            made = act()
        except HvdtrainError as error:
            problem = str(error)
    made, problem = tell(ranks, [made, problem])
    if problem:
        raise CheckpointError(problem)
    return made


def make_parts(directory: Path) -> str:
    """Make the folder in which all ranks' files lie until they move into a checkpoint; called on rank 0.

    Args:
        directory: of the checkpoint, beside which it is; it need not exist.

    Returns:
        Its name. `OSError` passes.
    """
    name = f".{directory.name}.parts-{secrets.token_hex(4)}"
    _make(directory.with_name(name))
    return name


def write_own(
    ranks: Ranks, parts: Path, own: ArrayStream, writers: Collection[int] = (0,)
) -> dict[Path, FileRecord]:
    """Write the files of all ranks; every rank calls it.

    Each writes its own where all can write to the folder. Else the writers write them, one array of one rank
    at a time: no rank holds those of all.

    Args:
        ranks: all of the job.
        parts: the folder, made on rank 0; another writer's is made here.
        own: this rank's arrays, in the order of their kinds, which are the same on all ranks.
        writers: ranks that are to have all files, each in a folder of its own.

    Returns:
        The files by their paths on this rank, on every rank.

    Raises:
        OSError: on every rank, where one cannot write; the folder is gone.
    """
    # Raises nothing, which the others would not hear of.
    own_place = os.access(parts, os.W_OK)
    all_see = ranks.sum(np.array([float(own_place)]))[0] == ranks.size
    written: dict[str, FileRecord] = {}
    problem, stream = "", own
    for rank in [ranks.rank] if all_see else range(ranks.size):
        if not all_see:
            stream = ArrayStream(own.kinds, _arrays_of(ranks, rank, own))
        try:
            if all_see or ranks.rank in writers:
                if not parts.exists():
                    _make(parts)
                written[rank_file(rank)] = write_arrays(parts / rank_file(rank), stream)
        except (OSError, SafetensorError) as error:
            problem = problem or f"rank {ranks.rank}: {error}"
        # Goes through what is left, in which all ranks take part.
        deque(stream.arrays, maxlen=0)
    every = [json.loads(each) for each in ranks.gather(json.dumps([written, problem]).encode())]
    if problems := [each for _, each in every if each]:
        if ranks.rank in writers:
            shutil.rmtree(parts, ignore_errors=True)
        raise OSError(problems[0])
    return {parts / name: FileRecord(*record) for files, _ in every for name, record in files.items()}


def _make(parts: Path) -> None:
    # What a killed job left; checkpoints of one directory are written one after the other.
    for left in parts.parent.glob(".checkpoint-[0-9]*.parts-*"):
        shutil.rmtree(left, ignore_errors=True)
    parts.mkdir(parents=True)


def _arrays_of(ranks: Ranks, rank: int, own: ArrayStream) -> Iterator[tuple[str, np.ndarray]]:
    """One rank's arrays, on every rank, one at a time."""
    mine = iter(own.arrays)
    for name, kind in own.kinds.items():
        # In words, added to zeros: Horovod cannot sum every dtype.
        words = np.zeros(-(-kind.nbytes // 4), np.int32)
        content = words.view(np.uint8)[: kind.nbytes]
        if rank == ranks.rank:
            content[:] = np.asarray(next(mine)[1], order="C").reshape(-1).view(np.uint8)
        found = ranks.sum(words) if words.size else words
        yield name, found.view(np.uint8)[: kind.nbytes].view(kind.dtype).reshape(kind.shape)
