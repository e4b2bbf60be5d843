"""Which checkpoints of a run are kept: the newest ones, and the best."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.core.checkpoints.finding import check_files, check_whole, checkpoints_in, step_of
from hvdtrain.core.checkpoints.manifest import read_manifest
from hvdtrain.core.errors import CheckpointError, DamagedError
from hvdtrain.core.process.files import remove, size_of
from hvdtrain.core.spec.checkpointing import CheckpointingSpec

Metrics = Mapping[str, float | None]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept.

    Attributes:
        limit: how many at most, the best one included; None: all. The newest and the best are always kept.
        metric: what the best one is best in; None: there is no best one.
        greater_is_better: in this metric.
    """

    limit: int | None = None
    metric: str | None = None
    greater_is_better: bool = False

    @classmethod
    def of_spec(cls, section: CheckpointingSpec) -> Retention:
        """That of a job."""
        return cls(section.save_total_limit, section.best_metric, section.greater_wins)

    def best(self, found: Mapping[int, Metrics]) -> int | None:
        """The step of the best checkpoint, the earliest where several are equally good.

        Args:
            found: the metrics of each checkpoint, by its step. One without the metric is never the best.
        """
        if self.metric is None:
            return None
        known = {step: found[step].get(self.metric) for step in sorted(found)}
        numbers = {step: v for step, v in known.items() if v is not None and not math.isnan(v)}
        choose = max if self.greater_is_better else min
        return choose(numbers, key=lambda step: numbers[step], default=None)

    def surplus(self, found: Mapping[int, Metrics], newest: int | None = None) -> list[int]:
        """The steps of those that are not kept, in the order in which they go.

        Args:
            found: as in `best`; of whole checkpoints.
            newest: the step of the one that was saved last; None: the greatest. Those of later steps stay
                and do not count: a run sets those of a history that it leaves aside, so they are another's.
        """
        if self.limit is None or not found:
            return []
        newest = max(found) if newest is None else newest
        found = {step: found[step] for step in sorted(found) if step <= newest}
        kept = {newest, self.best(found)} - {None}
        free = [step for step in found if step not in kept]
        return free[: max(0, len(found) - max(self.limit, len(kept)))]


def rotate(output_dir: Path, retention: Retention, newest: int) -> None:
    """Delete the checkpoints of a run that are not kept, if it has a limit.

    Args:
        output_dir: of the run, where nobody else writes.
        retention: says which are kept.
        newest: the step of the one that was saved last, which is whole.

    Raises:
        CheckpointError: one cannot be deleted.
    """
    if retention.limit is None:
        return
    for place in not_kept(output_dir, retention, newest):
        delete(place)


def not_kept(
    output_dir: Path,
    retention: Retention,
    newest: int | None = None,
    every_byte: bool = False,
    skip: Callable[[Path, CheckpointError], object] = lambda path, error: None,
) -> list[Path]:
    """The checkpoints of a run that are not kept: damaged ones first, which count for nothing.

    Args:
        output_dir: of the run.
        retention: says which are kept.
        newest: as in `Retention.surplus`.
        every_byte: as in `deletable`.
        skip: likewise.
    """
    whole, damaged = deletable(output_dir, every_byte, skip)
    damaged = [place for place in damaged if step_of(place) != newest]
    places = {step_of(place): place for place in whole}
    surplus = retention.surplus({step: whole[place] for step, place in places.items()}, newest)
    return [*damaged, *(places[step] for step in surplus)]


def deletable(
    output_dir: Path,
    every_byte: bool = False,
    skip: Callable[[Path, CheckpointError], object] = lambda path, error: None,
) -> tuple[dict[Path, Metrics], list[Path]]:
    """The checkpoints of a run that may be deleted: whole ones with their metrics, and damaged ones.

    Args:
        output_dir: of the run.
        every_byte: whether to read all files, not their sizes alone.
        skip: called with each that stays because it cannot be read now, or is of another format or another
            program, and the error.
    """
    whole, others = measured(output_dir, every_byte)
    damaged = []
    for place, error in others.items():
        if isinstance(error, DamagedError):
            damaged.append(place)
        else:
            skip(place, error)
    return whole, damaged


def measured(
    output_dir: Path, every_byte: bool = False
) -> tuple[dict[Path, Metrics], dict[Path, CheckpointError]]:
    """The whole checkpoints of a run with their metrics, and the others with what is wrong with them.

    Args:
        output_dir: of the run.
        every_byte: as in `deletable`.
    """
    whole, others = dict[Path, Metrics](), dict[Path, CheckpointError]()
    for place in checkpoints_in(output_dir):
        try:
            manifest = read_manifest(place)
            check_files(place, manifest, sizes_only=not every_byte)
            # Of format 1 no metrics are known.
            whole[place] = manifest.metrics if manifest else {}
        except CheckpointError as error:
            others[place] = error
    return whole, others


def best_checkpoint(
    output_dir: Path, retention: Retention, others: Mapping[int, Metrics], say: Callable[[str], None]
) -> Path | None:
    """The best checkpoint of a run whose bytes are as they were saved; None where another state is better.

    Args:
        output_dir: of the run.
        retention: says what is best.
        others: metrics of states that are not saved yet, by their step.
        say: prints a line for each damaged one, which is passed over.
    """
    whole, _ = measured(output_dir)
    places = {step_of(place): place for place in whole}
    found = {**{step: whole[place] for step, place in places.items()}, **others}
    while (step := retention.best(found)) is not None and step not in others:
        try:
            check_whole(places[step])
            return places[step]
        except CheckpointError as error:
            say(f"warning: passed over {places[step].name}, which was the best: {error}")
            del found[step]
    return None


def delete(path: Path) -> None:
    """Delete what a run has written, in such a way that no part of a checkpoint is left under its name.

    Raises:
        CheckpointError: it cannot be deleted.
    """
    gone = path.with_name(f".{path.name.lstrip('.')}.tmp-{os.getpid()}")
    try:
        size = size_of(path)
        path.rename(gone)
        try:
            remove(gone)
        except OSError:
            if size_of(gone) == size:
                # Nothing of it has gone yet.
                gone.rename(path)
            raise
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be deleted: {error.strerror}") from None
