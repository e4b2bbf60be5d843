"""Deleting the checkpoints that a run does not need, while no job writes there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from hvdtrain.core.checkpoints.finding import checkpoints_in, left_behind
from hvdtrain.core.checkpoints.manifest import SPEC_FILE
from hvdtrain.core.checkpoints.retention import Retention, delete, not_kept
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.files import size_of
from hvdtrain.core.run.lock import locked
from hvdtrain.core.spec.checkpointing import CheckpointingSpec


def prune(output_dir: Path, keep: int | None, say: Callable[[str], None]) -> None:
    """Delete what killed jobs have left, damaged checkpoints, and those that are not kept.

    The newest checkpoint stays, and the best one where the run looks for it. So does what cannot be read, or
    is of another format or another program.

    Args:
        output_dir: of the run.
        keep: how many stay at most; None: as many as its spec's `save_total_limit` says.
        say: prints a line for each thing that was deleted, and for each that could not be read.

    Raises:
        CheckpointError: there is no such directory, it holds no run, a job is writing there, or something
            cannot be deleted.
    """
    if not output_dir.is_dir():
        raise CheckpointError(f"{output_dir}: no such directory; give the output directory of a run")
    with locked(output_dir):
        spec = output_dir / SPEC_FILE
        # A loop of the user's own has none, and says itself what it keeps.
        own_loop = not spec.exists() and checkpoints_in(output_dir)
        retention = Retention() if own_loop else _retention(spec)
        if keep is not None:
            retention = replace(retention, limit=keep)
        total, left = 0, left_behind(output_dir)
        surplus = not_kept(
            output_dir,
            retention,
            every_byte=True,
            skip=lambda path, error: say(f"left {path.name} alone: {error}"),
        )
        for path in (*left, *surplus):
            size = size_of(path)
            delete(path)
            say(f"deleted {path.name} ({size} bytes)")
            total += size
        say(f"{output_dir}: {total} bytes deleted")


def _retention(spec: Path) -> Retention:
    """What the spec of a run says, of which only this section is read."""
    try:
        section = json.loads(spec.read_bytes()).get("checkpointing", {})
        return Retention.of_spec(CheckpointingSpec.model_validate_json(json.dumps(section), strict=True))
    except OSError as error:
        raise CheckpointError(f"{spec}: cannot be read: {error.strerror}; give a run's directory") from None
    except (ValueError, AttributeError, ValidationError):
        raise CheckpointError(f"{spec}: is not what a job has written; take it from a checkpoint") from None
