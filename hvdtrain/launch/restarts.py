"""`hvdtrain run --max-restarts`: a job that has crashed is started again from its last whole checkpoint."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hvdtrain.core.checkpoints.finding import checkpoints_in
from hvdtrain.core.checkpoints.manifest import SPEC_FILE, STATE_FILE
from hvdtrain.core.checkpoints.state import check_checkpoint
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.output_dir import goes_on_in
from hvdtrain.launch.endings import Ending

RESTARTS_FILE = "restarts.jsonl"


@dataclass(frozen=True)
class _Restart:
    """One restart.

    Attributes:
        number: from 1.
        status: exit status of the job before it.
        reason: why that job ended.
        resume: the checkpoint that the job goes on from; None: it starts anew.
    """

    number: int
    status: int
    reason: str
    resume: str | None

    def __str__(self) -> str:
        return f"{self.reason}; restart {self.number} " + (
            f"goes on from {self.resume}" if self.resume else "begins anew: there is no checkpoint"
        )


def run_with_restarts(
    start: Callable[[Path | None, bool], Ending],
    output_dir: Path,
    resume: Path | None,
    overwrite: bool,
    max_restarts: int,
) -> int:
    """Run a job, and run it again when it has crashed, until it ends well or restarting is of no use.

    Ranks that were told to stop are not started again, nor is a job that fails twice in a row with the same
    error and without a new checkpoint. Each restart is a line of `restarts.jsonl` in the output directory.

    Args:
        start: runs the job once, from a checkpoint or from the start; and whether it is to delete the run
            that its output directory holds.
        output_dir: where rank 0 writes; must be seen from here.
        resume: the checkpoint to go on from at first.
        overwrite: whether the run that is there at first is deleted.
        max_restarts: how often it is started again at most.

    Returns:
        The exit status of the last run.
    """
    restarts: list[_Restart] = []
    vain: str | None = None
    # Another run may have left its own.
    older, others = _written(output_dir), _begun(output_dir)
    while True:
        before = _written(output_dir)
        ending = start(resume, overwrite)
        if not ending.crashed or len(restarts) == max_restarts:
            break
        cause = None if _written(output_dir) - before else ending.cause
        if cause is not None and cause == vain:
            _tell("it has failed twice with the same error and without a new checkpoint: not restarted again")
            break
        vain = cause
        if newest := newest_checkpoint(output_dir, older):
            resume, overwrite = newest, False
        elif _begun(output_dir) != others:
            # What is there is of the job itself, and nothing that it could go on from.
            overwrite = not goes_on_in(output_dir, resume)
        found = str(resume) if resume else None
        restarts.append(_Restart(len(restarts) + 1, ending.status, ending.reason, found))
        _tell(f"restart {len(restarts)} of at most {max_restarts}, from {found or 'the start'}")
        _note(output_dir, restarts[-1])
    for restart in restarts:
        _tell(str(restart))
    return ending.status


def newest_checkpoint(output_dir: Path, but: frozenset[tuple[Path, int]] = frozenset()) -> Path | None:
    """The whole checkpoint of most updates in an output directory; None where there is none.

    Args:
        output_dir: of a run.
        but: what `_written` found there of an older run.
    """
    fresh = {path for path, _ in _written(output_dir) - but}
    for path in reversed(checkpoints_in(output_dir)):
        if path not in fresh:
            continue
        try:
            check_checkpoint(path)
        except CheckpointError:
            continue
        return path
    return None


def _written(output_dir: Path) -> frozenset[tuple[Path, int]]:
    """The checkpoints in an output directory, and when each was written."""
    states = [path / STATE_FILE for path in checkpoints_in(output_dir)]
    return frozenset((state.parent, state.stat().st_mtime_ns) for state in states if state.is_file())


def _begun(output_dir: Path) -> int | None:
    """When the run in an output directory began or went on; None where there is none."""
    try:
        return (output_dir / SPEC_FILE).stat().st_mtime_ns
    except OSError:
        return None


def _note(output_dir: Path, restart: _Restart) -> None:
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **vars(restart)}
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with (output_dir / RESTARTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        _tell(f"{output_dir / RESTARTS_FILE}: cannot be written: {error.strerror}")


def _tell(text: str) -> None:
    print(f"hvdtrain: {text}", file=sys.stderr)
