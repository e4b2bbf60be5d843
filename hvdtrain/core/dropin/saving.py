"""Checkpoints of a loop of the user's own: all ranks write their parts of one directory."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

from hvdtrain.core.checkpoints.arrays import ArrayStream
from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.checkpoints.finding import (
    checkpoint_dir,
    checkpoints_in,
    is_ours,
    left_behind,
    point_to,
    step_of,
)
from hvdtrain.core.checkpoints.manifest import FORMAT, STATE_FILE, new_manifest
from hvdtrain.core.checkpoints.model_folder import told, write_directory
from hvdtrain.core.checkpoints.rank_files import make_parts, together, write_own
from hvdtrain.core.checkpoints.retention import Metrics, Retention, deletable, delete, rotate
from hvdtrain.core.checkpoints.state import Arrays
from hvdtrain.core.dropin.saved import say
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.files import remove
from hvdtrain.core.run.lock import locked
from hvdtrain.core.run.output_dir import set_later_aside
from hvdtrain.core.run.ranks import Ranks

_told = partial(told, what="checkpoint", option="directory")
# What `state.json` is to hold, JSON-ready, and what each file of arrays is to hold, copies of all.
Taken = tuple[Mapping[str, Any], Mapping[str, ArrayStream]]


@dataclass
class LoopWriter:
    """Writes `checkpoint-STEP` directories, one at a time and in the background; every rank has one.

    Attributes:
        directory: in which they are.
        ranks: all of the job.
        framework: `torch` or `keras`.
        versions: of the packages that compute, by name.
        save_total_limit: how many checkpoints are kept, the newest ones; None: all.
        overwrite: whether the next save takes the place of all checkpoints that are there.
        goes_on_from: the step of what was restored, until the next save; later checkpoints are set aside.
    """

    directory: Path
    ranks: Ranks
    framework: str
    versions: Mapping[str, str]
    save_total_limit: int | None
    overwrite: bool = False
    goes_on_from: int | None = None
    _background: BackgroundWriter = field(default_factory=BackgroundWriter)
    _lock: ExitStack = field(default_factory=ExitStack)

    def begin(self) -> None:
        """Keep other jobs out of the directory from now on; every rank calls it.

        Raises:
            CheckpointError: another job writes there, or the directory cannot be written.
        """
        self._together(lambda: self._lock.enter_context(locked(self.directory, "Checkpoint: directory")))
        weakref.finalize(self, _end, self._background, self._lock)

    def save(
        self,
        step: int,
        take: Callable[[], Taken],
        own: Arrays,
        metrics: Mapping[str, float | None],
    ) -> None:
        """Save a checkpoint; every rank calls it. It is complete after the next `save` or `wait`.

        A rank's own state is written by that rank where all ranks see the directory, else by rank 0, one
        array of one rank at a time: no rank holds that of all.

        Args:
            step: updates that were taken.
            take: called on rank 0 alone, once the last checkpoint is on disk, for what is alike on all ranks.
            own: this rank's state, by name; of the same names, shapes and dtypes on all ranks.
            metrics: the last ones, for the manifest.

        Raises:
            CheckpointError: on every rank: it cannot be written, or the one before could not; what was there
                is as it was.
        """
        directory, taken = checkpoint_dir(self.directory, step), list[tuple[Taken, int, Metrics]]()

        def begin() -> str:
            self._background.wait()
            taken.append((take(), *_numbers(step, metrics)))
            return self._make_parts(directory)

        parts = self.directory / self._together(begin)
        with _told(directory):
            files = write_own(self.ranks, parts, ArrayStream.of(own))
        if not self.ranks.is_chief:
            return
        (record, streams), step, metrics = taken.pop()
        texts = {STATE_FILE: json.dumps({"format": FORMAT, "step": step, **record}, indent=2) + "\n"}
        whole = {name: stream.snapshot() for name, stream in streams.items()}
        manifest = partial(new_manifest, step, self.framework, self.ranks.size, metrics, "", self.versions)
        others = self._overwritten(directory) if self.overwrite else []
        self.overwrite = False
        write = partial(write_directory, directory, whole, texts, manifest, files)
        self._background.submit(partial(self._replace, directory, write, others))

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk; every rank calls it.

        Raises:
            CheckpointError: on every rank: it could not be written.
        """
        self._together(self._background.wait)

    def _make_parts(self, directory: Path) -> str:
        """Where ranks put what is their own, until the checkpoint is complete."""
        # What a killed job left.
        for left in left_behind(self.directory):
            with _in_nobodys_way():
                remove(left)
        if self.goes_on_from is not None:
            set_later_aside(self.directory, self.goes_on_from)
            self.goes_on_from = None
        if directory.exists() and not is_ours(directory):
            raise CheckpointError(
                f"{directory}: is there already, and was not saved by hvdtrain: delete it, or give another "
                "directory"
            )
        later = (path for path in checkpoints_in(self.directory) if step_of(path) > step_of(directory))
        if not self.overwrite and (newer := next(filter(is_ours, later), None)):
            raise CheckpointError(
                f"{directory}: {newer.name} is there already, and would be taken for the newer: restore it, "
                "delete it, or give another directory"
            )
        return make_parts(directory)

    def _overwritten(self, directory: Path) -> list[Path]:
        """The checkpoints that this one replaces, but for the one in its own place."""
        whole, damaged = deletable(
            self.directory, skip=lambda path, error: say(f"{path.name} is not deleted: {error}")
        )
        return [path for path in (*whole, *damaged) if path != directory]

    def _replace(self, directory: Path, write: Callable[[], None], others: list[Path]) -> None:
        """Write a checkpoint, and delete those that are not kept."""
        with _told(directory):
            write()
        point_to(directory)
        for other in others:
            delete(other)
        with _in_nobodys_way():
            rotate(self.directory, Retention(self.save_total_limit), step_of(directory))

    def _together(self, act: Callable[[], Any]) -> Any:
        """What rank 0 makes, which is JSON-ready or None; its error is raised on every rank."""

        return together(self.ranks, _told(self.directory)(act))


def _numbers(step: Any, metrics: Any) -> tuple[int, Metrics]:
    """The same as numbers of Python's own, which JSON takes."""
    try:
        found, given = index(step), dict(metrics)
    except (TypeError, ValueError):
        found, given = -1, {}
    if found < 0:
        raise CheckpointError(
            "Checkpoint.save: expected a step from 0, and metrics such as {'loss': 0.5} "
            f"(found {step!r} and {metrics!r})"
        )
    for name, value in given.items():
        try:
            given[name] = None if value is None else float(value)
        except (TypeError, ValueError, RuntimeError):
            raise CheckpointError(
                f"Checkpoint.save: metrics: {name}: expected a number (found a {type(value).__name__})"
            ) from None
    return found, given


@contextmanager
def _in_nobodys_way() -> Iterator[None]:
    """Training goes on where something old cannot be deleted; each save tries again."""
    try:
        yield
    except (CheckpointError, OSError) as error:
        print(f"hvdtrain: warning: {error}", file=sys.stderr, flush=True)


def _end(background: BackgroundWriter, lock: ExitStack) -> None:
    """What is done for a program that has not waited at its end."""
    with lock:
        try:
            background.wait()
        except CheckpointError as error:
            print(f"hvdtrain: {error}", file=sys.stderr, flush=True)
