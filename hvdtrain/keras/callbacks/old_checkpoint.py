"""States that `callbacks.Checkpoint` saved in format 1: one directory, one file for all ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import SavedArrays
from hvdtrain.core.checkpoints.manifest import STATE_FILE
from hvdtrain.core.checkpoints.model_folder import WEIGHTS_FILE
from hvdtrain.core.checkpoints.rank_files import rank_file
from hvdtrain.core.checkpoints.state import OPTIMIZER_FILE
from hvdtrain.core.dropin.resuming import compression_name
from hvdtrain.core.dropin.saved import Opened, say
from hvdtrain.core.errors import CheckpointError
from hvdtrain.tensorflow.dropin.agreement import shared_name

WINDOW = "window."
_RANKS_FILE = "ranks.safetensors"


def open_old(directory: Path) -> Opened | None:
    """Open such a state; None where there is none. Its generators are left out.

    Raises:
        CheckpointError: it cannot be read.
    """
    if not (directory / _RANKS_FILE).exists():
        return None
    try:
        saved = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        every = SavedArrays(directory / _RANKS_FILE)
        files: dict[str, Any] = {n: SavedArrays(directory / n) for n in (WEIGHTS_FILE, OPTIMIZER_FILE)}
        files |= {rank_file(rank): _OldRank(every, rank) for rank in range(saved["ranks"])}
        layout, epoch = shared_layout(saved["layout"]), saved["epoch"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{directory}: not a whole state of callbacks.Checkpoint ({error}): give another directory, or "
            "Checkpoint(resume=False)"
        ) from None
    say(f"{directory} has format 1, without a manifest: its files cannot be verified")
    record = {"step": 0, "epoch": epoch, "position": None, "order": None, "layout": layout}
    return Opened(directory, record, saved["ranks"], files)


def shared_layout(layout: str) -> str:
    """What of a layout is equal where states fit: names depend on whether the model was built or loaded."""
    return json.dumps([[policy, [*map(shared_name, names)]] for policy, names in json.loads(layout)])


class _OldRank(Mapping[str, np.ndarray]):
    """One rank's arrays, under the names of today."""

    def __init__(self, every: SavedArrays, rank: int) -> None:
        self._every, self._names = every, dict[str, str]()
        for name in every:
            owner, kind, rest = name.split(".", 2)
            if owner == str(rank) and kind == "window":
                self._names[f"{WINDOW}{rest}"] = name
            elif owner == str(rank) and kind.startswith("bucket"):
                self._names[compression_name(int(kind.removeprefix("bucket")), rest)] = name
        self.shapes = {new: every.shapes[old] for new, old in self._names.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._every[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
