"""Checkpoints of a loop of the user's own: all ranks write their parts of one directory."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from hvdtrain.core.checkpoints.arrays import ArrayStream, write_arrays
from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.checkpoints.finding import checkpoint_dir, checkpoints_in, point_to, step_of
from hvdtrain.core.checkpoints.manifest import FORMAT, MANIFEST_FILE, STATE_FILE, FileRecord, Manifest
from hvdtrain.core.checkpoints.model_folder import replace_directory
from hvdtrain.core.checkpoints.retention import Retention, delete, rotate
from hvdtrain.core.checkpoints.state import Arrays
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.output_dir import locked
from hvdtrain.core.run.ranks import Ranks

_Files = dict[str, FileRecord]
_PARTS = ".parts-"


def rank_file(rank: int) -> str:
    """The file of a rank's own state: residuals, random generators, and a window under way."""
    return f"rank-{rank}.safetensors"


def tell(ranks: Ranks, value: Any) -> Any:
    """Rank 0's value, which is JSON-ready, on every rank; every rank calls it."""
    message = np.frombuffer(json.dumps(value).encode(), np.uint8) if ranks.is_chief else np.zeros(0, np.uint8)
    return json.loads(ranks.broadcast_arrays({"json": message})["json"].tobytes())


@dataclass
class LoopWriter:
    """Writes `checkpoint-STEP` directories, one at a time and in the background; every rank has one.

    Attributes:
        directory: in which they are.
        ranks: all of the job.
        framework: `torch` or `keras`.
        versions: of the packages that compute, by name.
        save_total_limit: how many checkpoints are kept, the newest ones; None: all.
        overwrite: whether the first save takes the place of all checkpoints that are there.
    """

    directory: Path
    ranks: Ranks
    framework: str
    versions: Mapping[str, str]
    save_total_limit: int | None
    overwrite: bool = False
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
        record: Mapping[str, Any],
        streams: Mapping[str, ArrayStream],
        own: Arrays,
        metrics: Mapping[str, float | None],
    ) -> None:
        """Save a checkpoint; every rank calls it. It is complete after the next `save` or `wait`.

        A rank's own state is written by that rank where all ranks see the directory, else by rank 0, one
        array of one rank at a time: no rank holds that of all.

        Args:
            step: updates that were taken.
            record: what `state.json` is to hold, JSON-ready; rank 0's counts.
            streams: what each file of arrays is to hold, copies of all; rank 0's count.
            own: this rank's state, by name; of the same names, shapes and dtypes on all ranks.
            metrics: the last ones, for the manifest.

        Raises:
            CheckpointError: it cannot be written, or the one before could not; what was there is as it was.
        """
        self.wait()
        directory = checkpoint_dir(self.directory, step)
        parts = self.directory / self._together(partial(self._make_parts, directory))
        files = self._write_own(parts, own)
        if not self.ranks.is_chief:
            return
        texts = {STATE_FILE: json.dumps({"format": FORMAT, "step": step, **record}, indent=2) + "\n"}
        whole = {name: stream.snapshot() for name, stream in streams.items()}
        manifest = partial(self._manifest, step, dict(metrics))
        others = [path for path in checkpoints_in(self.directory) if self.overwrite and path != directory]
        self.overwrite = False
        write = partial(self._write, directory, parts, files, whole, texts, manifest)
        self._background.submit(partial(self._replace, directory, write, others))

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self._background.wait()

    def _make_parts(self, directory: Path) -> str:
        """Where ranks put what is their own, until the checkpoint is complete."""
        newest = max([directory, *checkpoints_in(self.directory)], key=step_of)
        if newest != directory and not self.overwrite:
            raise CheckpointError(
                f"{directory}: {newest.name} is there already, and would be taken for the newer: restore it, "
                "delete it, or give another directory"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        # What a killed job left.
        for left in self.directory.glob(f".checkpoint-*{_PARTS}*"):
            shutil.rmtree(left, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f".{directory.name}{_PARTS}", dir=self.directory)).name

    def _write_own(self, parts: Path, own: Arrays) -> _Files:
        """The files of all ranks' own state, on every rank."""
        ranks, problem = self.ranks, ""
        stream = ArrayStream.of(own)
        all_see = ranks.sum(np.array([float(parts.is_dir())]))[0] == ranks.size
        writers = [ranks.rank] if all_see else range(ranks.size)
        written: dict[str, FileRecord] = {}
        for rank in writers:
            if not all_see:
                stream = ArrayStream(stream.kinds, self._arrays_of(rank, own))
            try:
                if all_see or ranks.is_chief:
                    written[rank_file(rank)] = write_arrays(parts / rank_file(rank), stream)
            except (OSError, SafetensorError) as error:
                problem = f"rank {ranks.rank}: {error}"
            if not all_see:
                # Goes through what is left, which the other ranks send.
                deque(stream.arrays, maxlen=0)
        every = [json.loads(each) for each in ranks.gather(json.dumps([written, problem]).encode())]
        if problems := [each for _, each in every if each]:
            if ranks.is_chief:
                shutil.rmtree(parts, ignore_errors=True)
            raise _failed(self.directory, problems[0])
        return {name: FileRecord(*record) for files, _ in every for name, record in files.items()}

    def _arrays_of(self, rank: int, own: Arrays) -> Iterator[tuple[str, np.ndarray]]:
        """One rank's arrays, on every rank; other ranks do not keep them."""
        for name, array in own.items():
            # In words, added to zeros: Horovod cannot sum every dtype.
            words = np.zeros(-(-array.nbytes // 4), np.int32)
            content = words.view(np.uint8)[: array.nbytes]
            if rank == self.ranks.rank:
                content[:] = array.reshape(-1).view(np.uint8)
            found = self.ranks.sum(words) if words.size else words
            yield name, found.view(np.uint8)[: array.nbytes].view(array.dtype).reshape(array.shape)

    def _write(
        self,
        directory: Path,
        parts: Path,
        files: _Files,
        streams: Mapping[str, ArrayStream],
        texts: Mapping[str, str],
        manifest: Callable[[_Files], Manifest],
    ) -> None:
        def write(into: Path) -> None:
            written = dict(files)
            for name in files:
                (parts / name).rename(into / name)
            for name, stream in streams.items():
                written[name] = write_arrays(into / name, stream)
            for name, text in texts.items():
                (into / name).write_bytes(text.encode())
                written[name] = FileRecord.of(text.encode())
            (into / MANIFEST_FILE).write_text(manifest(written).text(), encoding="utf-8")

        try:
            replace_directory(directory, write)
        except (OSError, SafetensorError) as error:
            raise _failed(directory, str(error)) from None
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    def _replace(self, directory: Path, write: Callable[[], None], others: list[Path]) -> None:
        """Write a checkpoint, and delete those that are not kept."""
        write()
        point_to(directory)
        for other in others:
            delete(other)
        rotate(self.directory, Retention(self.save_total_limit), step_of(directory))

    def _manifest(self, step: int, metrics: Mapping[str, float | None], files: _Files) -> Manifest:
        return Manifest(
            format=FORMAT,
            step=step,
            saved_at=datetime.now(UTC).isoformat(timespec="seconds"),
            framework=self.framework,
            ranks=self.ranks.size,
            metrics=metrics,
            spec="",
            versions=self.versions,
            files=files,
        )

    def _together(self, act: Callable[[], Any]) -> Any:
        """What rank 0 makes, which is JSON-ready or None; its error is raised on every rank."""
        made, problem = None, ""
        if self.ranks.is_chief:
            try:
                made = act()
            except CheckpointError as error:
                problem = str(error)
            except OSError as error:
                problem = str(_failed(self.directory, str(error)))
        made, problem = tell(self.ranks, [made, problem])
        if problem:
            raise CheckpointError(problem)
        return made


def _end(background: BackgroundWriter, lock: ExitStack) -> None:
    """What is done for a program that has not waited at its end."""
    with lock:
        try:
            background.wait()
        except CheckpointError as error:
            print(f"hvdtrain: {error}", file=sys.stderr, flush=True)


def _failed(path: Path, error: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the checkpoint could not be saved: {error}; earlier ones are as they were. Free some space "
        "or give another directory"
    )
