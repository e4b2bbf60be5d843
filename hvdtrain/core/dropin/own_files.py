"""What is each rank's own in a checkpoint of a loop of the user's own: a file for each rank."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import ArrayStream, write_arrays
from hvdtrain.core.checkpoints.manifest import FileRecord
from hvdtrain.core.checkpoints.state import Arrays
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.ranks import Ranks


def rank_file(rank: int) -> str:
    """The file of a rank's own state: residuals, random generators, and a window under way."""
    return f"rank-{rank}.safetensors"


def tell(ranks: Ranks, value: Any) -> Any:
    """Rank 0's value, which is JSON-ready, on every rank; every rank calls it."""
    message = np.frombuffer(json.dumps(value).encode(), np.uint8) if ranks.is_chief else np.zeros(0, np.uint8)
    return json.loads(ranks.broadcast_arrays({"json": message})["json"].tobytes())


def write_own(ranks: Ranks, directory: Path, own: Arrays) -> dict[str, FileRecord]:
    """Write the files of all ranks; every rank calls it.

    Each writes its own where all see the directory, else rank 0 writes them, one array of one rank at a time.

    Args:
        ranks: all of the job.
        directory: exists on rank 0.
        own: this rank's arrays, by name; of the same names, shapes and dtypes on all ranks.

    Returns:
        The files by name, on every rank.

    Raises:
        CheckpointError: on every rank, where one cannot write.
    """
    stream, problem = ArrayStream.of(own), ""
    all_see = ranks.sum(np.array([float(directory.is_dir())]))[0] == ranks.size
    written: dict[str, FileRecord] = {}
    for rank in [ranks.rank] if all_see else range(ranks.size):
        if not all_see:
            stream = ArrayStream(stream.kinds, _arrays_of(ranks, rank, own))
        try:
            if all_see or ranks.is_chief:
                written[rank_file(rank)] = write_arrays(directory / rank_file(rank), stream)
        except (OSError, SafetensorError) as error:
            problem = f"rank {ranks.rank}: {error}"
        if not all_see:
            # Goes through what is left, in which all ranks take part.
            deque(stream.arrays, maxlen=0)
    every = [json.loads(each) for each in ranks.gather(json.dumps([written, problem]).encode())]
    if problems := [each for _, each in every if each]:
        raise CheckpointError(problems[0])
    return {name: FileRecord(*record) for files, _ in every for name, record in files.items()}


def _arrays_of(ranks: Ranks, rank: int, own: Arrays) -> Iterator[tuple[str, np.ndarray]]:
    """One rank's arrays, on every rank, one at a time."""
    for name, array in own.items():
        # In words, added to zeros: Horovod cannot sum every dtype.
        words = np.zeros(-(-array.nbytes // 4), np.int32)
        content = words.view(np.uint8)[: array.nbytes]
        if rank == ranks.rank:
            content[:] = array.reshape(-1).view(np.uint8)
        found = ranks.sum(words) if words.size else words
        yield name, found.view(np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)
