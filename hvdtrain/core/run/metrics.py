"""The metric log: one JSON object a line, and the same numbers for TensorBoard."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hvdtrain.core import strict_json
from hvdtrain.core.errors import TrainingError

METRICS_FILE = "metrics.jsonl"
# What one line of the log holds, by name; None for what is not a number.
Line = dict[str, float | None]
_LARGEST_FLOAT32 = (2.0 - 2.0**-23) * 2.0**127


class MetricLog:
    """Writes `metrics.jsonl` (and TensorBoard events) into a run's output directory."""

    def __init__(self, output_dir: Path, tensorboard: bool, after_step: int = 0) -> None:
        """Open the log; of an older log in the same directory, lines after a step are dropped.

        Args:
            output_dir: an existing directory.
            tensorboard: whether to write event files into its `tensorboard` folder as well.
            after_step: the step to continue after; 0 starts a new log.
        """
        path = output_dir / METRICS_FILE
        old = _lines(path) if after_step and path.exists() else []
        kept = [line for line in old if line["step"] <= after_step]
        text = "".join(strict_json.dumps(line) + "\n" for line in kept)
        # Whole at every moment, also where the run before was killed in the middle of a line.
        unfinished = path.with_name(f".{METRICS_FILE}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._events = _EventFile(output_dir / "tensorboard", after_step) if tensorboard else None

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def write(self, line: Mapping[str, float | None]) -> None:
        """Append one line.

        Args:
            line: must hold `step`; floats are written in full precision. What is not a finite number is null
                in the file, and left out of TensorBoard's.

        Raises:
            TrainingError: when the disk is full.
        """
        try:
            self._file.write(strict_json.dumps(dict(line)) + "\n")
            self._file.flush()
            if self._events is not None:
                self._events.write(line)
        except OSError as error:
            raise TrainingError(
                f"{self._file.name}: cannot be written: {error.strerror}; free some space"
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
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    # Logs of earlier versions hold NaN.
    return [json.loads(line, parse_constant=lambda name: None) for line in whole.splitlines()]


class _EventFile:
    """A TensorBoard event file, by the record writer alone: those above it import TensorFlow or torch."""

    def __init__(self, directory: Path, after_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob("events.out.tfevents.*"):
            # TensorBoard itself drops a run's steps that a later file goes through again.
            if not after_step:
                old.unlink()
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._records = RecordWriter((directory / name).open("wb"))
        self._put(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, line: Mapping[str, float | None]) -> None:
        step = line["step"]
        assert step is not None
        values = {tag: value for tag, value in line.items() if tag != "step" and _fits(value)}
        items = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._put(self._event(wall_time=time.time(), step=int(step), summary=self._summary(value=items)))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _fits(value: float | None) -> bool:
    # TensorBoard's numbers are float32; NaN and infinities spoil what it exports as JSON.
    return value is not None and abs(value) <= _LARGEST_FLOAT32
