"""The metric log: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from hvdtrain.core import strict_json
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.process.files import write_whole

METRICS_FILE, TENSORBOARD_DIR = "metrics.jsonl", "tensorboard"
# What one line of the log holds, by name; None for what is not a number.
Line = dict[str, float | None]
_LARGEST_FLOAT32 = (2.0 - 2.0**-23) * 2.0**127


class MetricLog:
    """Writes `metrics.jsonl` (and TensorBoard events) into a run's output directory."""

    def __init__(self, output_dir: Path, tensorboard: bool, after_step: int = 0) -> None:
        """Open the log; of an older log in the same directory, lines up to a step are kept.

        Later ones are moved to `metrics.before-resume-STEP.jsonl`, with those that cannot be read. A line
        that a killed run left unfinished is dropped.

        Args:
            output_dir: an existing directory.
            tensorboard: whether to write event files into its `tensorboard` folder as well.
            after_step: the step to continue after; 0 at the start of a run.

        Raises:
            TrainingError: a file cannot be written.
        """
        self._path = output_dir / METRICS_FILE
        with _told(self._path):
            if self._path.exists():
                _keep_until(self._path, after_step)
            # Without a buffer: nothing is left to be written when it is closed on a full disk.
            self._file = self._path.open("ab", buffering=0)
        self._events: _EventFile | None = None
        if tensorboard:
            with _told(output_dir / TENSORBOARD_DIR):
                self._events = _EventFile(output_dir / TENSORBOARD_DIR, after_step)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            # Holds something yet where writing it has failed before, and been told.
            with _told(self._events.path):
                self._events.close()

    def write(self, line: Mapping[str, float | None]) -> None:
        """Append one line.

        Args:
            line: must hold `step`; floats are written in full precision. What is not a finite number is null
                in the file, and left out of TensorBoard's.

        Raises:
            TrainingError: when the disk is full.
        """
        rest = f"{strict_json.dumps(dict(line))}\n".encode()
        with _told(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]
        if self._events is not None:
            with _told(self._events.path):
                self._events.write(line)

    def sync(self) -> None:
        """Wait until all lines would outlive a power failure, as those before a checkpoint must.

        Raises:
            TrainingError: when they cannot be written.
        """
        with _told(self._path):
            os.fsync(self._file.fileno())


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written: {error.strerror}; free some space, or choose another --output-dir"
        ) from None


def read_metrics(output_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read a run's metric log.

    Args:
        output_dir: the run's output directory.

    Returns:
        The lines of training updates that were applied and the lines of evaluations. None stands for what was
        not a finite number; a last line that a killed run left unfinished is left out.
    """
    lines = _lines(output_dir / METRICS_FILE)
    return [x for x in lines if "loss" in x], [x for x in lines if "eval_loss" in x]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [_parsed(line) for line in _whole_lines(path)]


def _parsed(line: str) -> dict[str, Any]:
    # Logs of earlier versions hold NaN.
    found: dict[str, Any] = json.loads(line, parse_constant=lambda name: None)
    return found


def _whole_lines(path: Path) -> list[str]:
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [line.decode(errors="backslashreplace") for line in whole.splitlines()]


def _keep_until(path: Path, step: int) -> None:
    """Move the lines of later steps from a log to another file; both are whole at every moment."""
    kept, moved = "", ""
    for line in _whole_lines(path):
        try:
            found = _parsed(line)
            early = found["step"] <= step
        except (ValueError, KeyError, TypeError):
            early = False
        if early:
            kept += strict_json.dumps(found) + "\n"
        else:
            moved += line + "\n"
    if moved:
        other = path.with_name(f"{path.stem}.before-resume-{step}{path.suffix}")
        earlier = other.read_text(encoding="utf-8") if other.exists() else ""
        # A run killed after this and before the next has moved them already.
        write_whole(other, earlier if earlier.endswith(moved) else earlier + moved)
    write_whole(path, kept)


class _EventFile:
    """A TensorBoard event file, by the record writer alone: those above it import TensorFlow or torch."""

    def __init__(self, directory: Path, after_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        directory.mkdir(parents=True, exist_ok=True)
        # Readers take files in the order of their names: a later run's comes last, whatever clocks say.
        numbers = [path.name.split(".")[3] for path in directory.glob("events.out.tfevents.*")]
        older = [int(number) for number in numbers if number.isdigit()]
        second = max([int(time.time()), *(number + 1 for number in older)])
        self.path = directory / f"events.out.tfevents.{second}.{socket.gethostname()}"
        self._records = RecordWriter(self.path.open("wb"))
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if older:
            # Readers drop what earlier files hold of this step and later ones.
            restarted = SessionLog(status=SessionLog.START)
            self._put(Event(wall_time=time.time(), step=after_step + 1, session_log=restarted))

    def write(self, line: Mapping[str, float | None]) -> None:
        """Add the numbers of a line."""
        step = line["step"]
        assert step is not None
        values = {tag: value for tag, value in line.items() if tag != "step" and _fits(value)}
        items = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._put(self._event(wall_time=time.time(), step=int(step), summary=self._summary(value=items)))
        self._records.flush()

    def close(self) -> None:
        """Write what is left."""
        self._records.close()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _fits(value: float | None) -> bool:
    # TensorBoard's numbers are float32; NaN and infinities spoil what it exports as JSON.
    return value is not None and abs(value) <= _LARGEST_FLOAT32
