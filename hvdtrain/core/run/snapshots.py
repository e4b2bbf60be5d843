"""Snapshots of an elastic run: checkpoints in the memory of two hosts, from which it goes on without one.

Rank 0 writes them and a rank on another host, its neighbour. So the run outlives any one host, whatever file
systems hosts share. Each keeps its newest two.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np

from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.checkpoints.finding import Found, checkpoint_dir, checkpoints_in, first_whole, step_of
from hvdtrain.core.checkpoints.rank_files import together
from hvdtrain.core.checkpoints.retention import Retention
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.directories import replace_directory
from hvdtrain.core.process.outputs import say
from hvdtrain.core.run.lock import check_still_locked
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.saving import save
from hvdtrain.core.run.snapshot_places import ADVICE, roomy_root, roots
from hvdtrain.core.run.state import RunState
from hvdtrain.core.run.streams import moment_kinds, weight_kinds

_KEPT = Retention(limit=2)
# The kept ones, and one that is being written.
_COPIES = 3
_PIECE = 2**26
# What a job that has been killed leaves is deleted by another one, so many seconds later.
_STALE_S = 86400.0


@dataclass(frozen=True)
class SnapshotOptions:
    """What a launcher tells ranks about snapshots.

    Attributes:
        job: name of the job, the same whenever its ranks are started again.
        every: updates from one snapshot to the next.
    """

    job: str
    every: int


class Snapshots:
    """The snapshots of one job, as one of its ranks sees them.

    Every rank makes one, and every rank calls every method.

    Attributes:
        writer: writes them in the background.
    """

    def __init__(self, options: SnapshotOptions, ranks: Ranks) -> None:
        """Find out who writes.

        Raises:
            CheckpointError: there is no place for snapshots on this host.
        """
        self._job, self._ranks = options.job, ranks
        hosts = ranks.gather(socket.gethostname().encode())
        neighbours = [rank for rank, host in enumerate(hosts) if host != hosts[0]]
        self._writers = (0, *neighbours[:1])
        # Of the ranks on one host one looks after its files.
        self._is_first_here = hosts.index(hosts[ranks.rank]) == ranks.rank
        self.writer = BackgroundWriter()
        self._root: Path | None = None
        self._size = 0
        if self._is_first_here:
            self._delete_stale()

    def __enter__(self) -> Snapshots:
        self.writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.writer.__exit__(kind, error, at)

    def newest(
        self, find_later: Callable[[int], Found | None] = lambda step: None
    ) -> tuple[Path | None, Found | None]:
        """The newest whole snapshot that any host holds.

        Args:
            find_later: asked on rank 0 for a checkpoint of a later step than that of the snapshot.

        Returns:
            Its directory on rank 0's host, to which it is sent if need be, and on other ranks only a name;
            None where there is none, or a later checkpoint. And on rank 0 which of them it has verified.
        """
        places = chain.from_iterable(map(checkpoints_in, self._folders())) if self._is_first_here else ()
        newest_first = sorted(places, key=step_of, reverse=True)
        found = first_whole(newest_first, lambda path, error: say(f"warning: snapshot skipped: {error}"))
        step = step_of(found[0]) if found else -1
        steps = [int(answer) for answer in self._ranks.gather(str(step).encode())]
        holder = steps.index(max(steps))
        if steps[holder] < 0:
            return None, None
        later = find_later(steps[holder]) if self._ranks.is_chief else None
        if self._ranks.broadcast(np.array([later is not None]))[0]:
            return None, later
        found = found if holder == self._ranks.rank else None
        place = found[0] if found else None
        if holder != 0:
            place = self._send(holder, place, steps[holder])
        if self._ranks.is_chief:
            sent = f", which rank {holder} has sent" if holder else ""
            say(f"going on from a snapshot of update {steps[holder]}{sent}")
        return place or Path(f"the snapshot of update {steps[holder]}"), found if holder == 0 else None

    def take(self, run: Run, state: RunState, wait: bool = False) -> None:
        """Write a snapshot, in the background.

        Args:
            run: on this rank.
            state: where it stands.
            wait: write it now.

        Raises:
            CheckpointError: it cannot be written, or the one before it could not.
        """
        self.writer.wait()
        # The kinds of buffers are read from the model, on every rank.
        self._size = self._size or _size(run)
        # Rank 0's, which ranks on its host see.
        folder = Path(together(self._ranks, lambda: str(self._own_folder(self._size))))
        if self._ranks.rank in self._writers[1:]:
            folder = self._own_folder(self._size)
        place = checkpoint_dir(folder, state.step)
        writer = None if wait else self.writer
        save(run, place, state, {}, writer, retention=_KEPT, writers=self._writers)

    def follow(self, run: Run, state: RunState) -> None:
        """Take a snapshot where one is due; call it when an update's weights and buffers have been exchanged.

        Args:
            run: on this rank.
            state: where it stands.

        Raises:
            CheckpointError: a snapshot cannot be written, or the job goes on elsewhere.
        """
        if self._ranks.is_chief:
            # A launcher that is cut off from this host starts others, and a single rank would notice nothing.
            check_still_locked(run.output_dir)
        if run.snapshot_is_due(state.step) and state.step < run.plan.max_steps:
            self.take(run, state)

    def delete(self) -> None:
        """Delete this job's snapshots on every host: the run has ended."""
        self.writer.wait()
        if self._is_first_here:
            for root in roots():
                shutil.rmtree(root / self._job, ignore_errors=True)

    def _folders(self) -> Iterator[Path]:
        """Where snapshots of this job may lie on this host."""
        return chain.from_iterable((root / self._job).glob("*") for root in roots())

    def _own_folder(self, size: int) -> Path:
        """Where this host's snapshots lie; decided once, by the bytes of one."""
        # Hosts that are containers of one machine may share their memory.
        folder = Path(self._job, socket.gethostname())
        if self._root is None:
            # Where they lie already they take up room that will be theirs again.
            begun = [root for root in roots() if (root / folder).is_dir()]
            self._root = begun[0] if begun else roomy_root(_COPIES * size)
        return self._root / folder

    def _send(self, holder: int, source: Path | None, step: int) -> Path | None:
        """Send a snapshot from the rank that holds it to rank 0, in pieces; returns its place there."""
        ranks = self._ranks
        files = {file.name: file.stat().st_size for file in source.iterdir()} if source else {}
        sizes: dict[str, int] = json.loads(ranks.gather(json.dumps(files).encode())[holder])

        def pieces(name: str) -> Iterator[bytes]:
            with (source / name).open("rb") if source else nullcontext() as file:
                for _ in range(0, sizes[name], _PIECE):
                    yield ranks.gather(file.read(_PIECE) if file else b"\0")[holder]

        def write(into: Path) -> None:
            for name in sizes:
                with (into / Path(name).name).open("wb") as file:
                    file.writelines(pieces(name))

        if not ranks.is_chief:
            deque(chain.from_iterable(map(pieces, sizes)), maxlen=0)
            return None
        place = checkpoint_dir(self._own_folder(sum(sizes.values())), step)
        try:
            replace_directory(place, write)
        except OSError as error:
            raise CheckpointError(f"{place}: cannot be written: {error.strerror}; {ADVICE}") from None
        return place

    def _delete_stale(self) -> None:
        for folder in chain.from_iterable(root.glob("*") for root in roots()):
            # Another job may do the same.
            with suppress(OSError):
                changed = max(path.lstat().st_mtime for path in (folder, *folder.glob("*")))
                if folder.name != self._job and time.time() - changed > _STALE_S:
                    shutil.rmtree(folder, ignore_errors=True)


def _size(run: Run) -> int:
    """Bytes of a snapshot, but for the states of compression."""
    return sum(kind.nbytes for kind in chain(weight_kinds(run).values(), moment_kinds(run).values()))
