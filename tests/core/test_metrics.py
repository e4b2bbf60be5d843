"""The metric log: what was measured can be read back to the last bit, by us and by TensorBoard."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from hvdtrain.core.run import metrics
from hvdtrain.core.run.metrics import METRICS_FILE, MetricLog, read_metrics

# Writes lines where no file grows beyond 1000 bytes, as on a full disk, until it is told.
FULL = """
import resource, signal, sys
from pathlib import Path
from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run.metrics import MetricLog
try:
    with MetricLog(Path(sys.argv[1]), sys.argv[2] == "True") as log:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        for step in range(1, 100):
            log.write({"step": step, "loss": 0.5})
except TrainingError as error:
    print(error)
"""
TRAIN: list[dict[str, Any]] = [
    {"step": 1, "loss": 0.1 + 0.2, "learning_rate": 1e-4 / 3, "tokens": 12345678901},
    {"step": 2, "loss": 5e-324, "learning_rate": 2**-52, "tokens": 0},
]
EVALUATION = {"step": 2, "eval_loss": 1 / 3, "eval_perplexity": 1.3956}


def write(directory: Path, tensorboard: bool, lines: list[dict[str, Any]]) -> None:
    with MetricLog(directory, tensorboard) as log:
        for line in lines:
            log.write(line)


def events(directory: Path) -> list[tuple[int, str, float]]:
    """What TensorBoard's own reader finds: (step, tag, value)."""
    (file,) = (directory / "tensorboard").iterdir()
    return [
        (event.step, value.tag, value.tensor.float_val[0])
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
    ]


def test_every_line_is_a_json_object_with_its_numbers_in_full(tmp_path: Path) -> None:
    write(tmp_path, False, [*TRAIN, EVALUATION])
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [*TRAIN, EVALUATION]


def test_updates_and_evaluations_are_read_back_apart(tmp_path: Path) -> None:
    write(tmp_path, False, [TRAIN[0], EVALUATION, TRAIN[1]])
    assert read_metrics(tmp_path) == (TRAIN, [EVALUATION])


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with MetricLog(tmp_path, False) as log:
        log.write(TRAIN[0])
        assert read_metrics(tmp_path) == (TRAIN[:1], [])


def test_tensorboard_reads_the_same_numbers(tmp_path: Path) -> None:
    write(tmp_path, True, [TRAIN[0], EVALUATION])
    expected = [
        (line["step"], name, value) for line in (TRAIN[0], EVALUATION) for name, value in line.items()
    ]
    expected = [entry for entry in expected if entry[1] != "step"]
    found = events(tmp_path)
    assert [entry[:2] for entry in found] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in found] == pytest.approx([entry[2] for entry in expected], rel=1e-6)


def scalars(directory: Path, tag: str) -> list[int]:
    """The steps that TensorBoard's reader of a whole folder has of a tag."""
    found = EventAccumulator(str(directory / "tensorboard")).Reload()
    return [event.step for event in found.Scalars(tag)]


def test_a_log_that_goes_on_has_every_step_once_in_both_forms(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": float(step)} for step in range(1, 10)]
    for first, last, after in ((1, 6, 0), (5, 7, 4), (3, 9, 2)):
        with MetricLog(tmp_path, True, after) as log:
            for line in lines[first - 1 : last]:
                log.write(line)
        assert read_metrics(tmp_path)[0] == lines[:last]
        assert scalars(tmp_path, "loss") == [*range(1, last + 1)]
    # Nothing is lost: what went beyond the checkpoint lies beside the log.
    moved = {step: (tmp_path / f"metrics.before-resume-{step}.jsonl").read_text() for step in (4, 2)}
    assert [json.loads(line)["step"] for line in moved[4].splitlines()] == [5, 6]
    assert [json.loads(line)["step"] for line in moved[2].splitlines()] == [3, 4, 5, 6, 7]


def test_a_run_that_starts_anew_keeps_the_log_of_one_that_came_to_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, True, TRAIN)
    write(tmp_path, True, TRAIN[1:])
    assert read_metrics(tmp_path) == (TRAIN[1:], [])
    assert scalars(tmp_path, "loss") == [2]
    moved = (tmp_path / "metrics.before-resume-0.jsonl").read_text()
    assert [json.loads(line) for line in moved.splitlines()] == TRAIN


def test_going_on_from_one_checkpoint_again_and_again_loses_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, False, TRAIN)
    replaced: list[Path] = []
    replace = metrics.write_whole

    def killed(path: Path, text: str) -> None:
        if replaced:
            raise KeyboardInterrupt
        replaced.append(path)
        replace(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "write_whole", killed)
        with pytest.raises(KeyboardInterrupt):
            MetricLog(tmp_path, False, after_step=1)
    assert read_metrics(tmp_path) == (TRAIN, [])
    for _ in range(2):
        with MetricLog(tmp_path, False, after_step=1) as log:
            log.write({"step": 2, "loss": 7.0})
    moved = (tmp_path / "metrics.before-resume-1.jsonl").read_text()
    assert [json.loads(line)["loss"] for line in moved.splitlines()] == [TRAIN[1]["loss"], 7.0]


@given(st.binary(max_size=40), st.integers(0, 4))
def test_whatever_lies_in_a_log_a_run_goes_on(spoilt: bytes, after: int) -> None:
    """What a killed host leaves in a file may be anything; whole lines up to the checkpoint are kept."""
    whole = b"".join(b'{"step": %d, "loss": 0.5}\n' % step for step in range(1, 5))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / METRICS_FILE).write_bytes(whole + spoilt)
        with MetricLog(directory, False, after) as log:
            log.write({"step": after + 1, "loss": 0.5})
        found = [line["step"] for line in read_metrics(directory)[0]]
        assert found == [*range(1, after + 2)]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_full_disk_is_one_message_and_the_log_goes_on_afterwards(tmp_path: Path, tensorboard: bool) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path), str(tensorboard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    file = "tensorboard/events.out" if tensorboard else METRICS_FILE
    assert done.stdout.startswith(f"{tmp_path}/{file}"), done.stdout
    assert "cannot be written: File too large; free some space" in done.stdout
    assert done.stdout.count("\n") == 1
    steps = [line["step"] for line in read_metrics(tmp_path)[0]]
    assert steps == [*range(1, len(steps) + 1)] != []
    with MetricLog(tmp_path, tensorboard, after_step=steps[-1]) as log:
        log.write({"step": steps[-1] + 1, "loss": 0.5})
    assert [line["step"] for line in read_metrics(tmp_path)[0]] == [*steps, steps[-1] + 1]


def strict(text: str) -> Any:
    """Parse as RFC 8259 has it, which knows neither NaN nor infinities."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


NUMBERS = st.one_of(st.floats(), st.integers(-(2**70), 2**70), st.none(), st.floats(width=32).map(np.float32))


@given(
    st.lists(
        st.fixed_dictionaries({"step": st.integers(0, 9)}, optional=dict.fromkeys(["loss", "x"], NUMBERS))
    )
)
def test_every_log_is_strict_json_and_tensorboard_reads_what_is_finite(lines: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, True, lines)
        found = [strict(line) for line in (directory / METRICS_FILE).read_text().splitlines()]
        assert len(found) == len(lines)
        for line, expected in zip(found, lines, strict=True):
            assert line.keys() == expected.keys()
            for key, value in expected.items():
                finite = value is not None and math.isfinite(value)
                assert line[key] == (value if finite else None)
        told = events(directory)
        assert all(math.isfinite(value) for _, _, value in told)
        kept = [v for line in found for k, v in line.items() if k != "step" and v is not None]
        assert len(told) == sum(abs(value) <= float(np.finfo(np.float32).max) for value in kept)


def test_what_is_no_number_is_none_when_it_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, False, [{"step": 1, "loss": math.nan}, {"step": 1, "eval_loss": math.inf}])
    assert read_metrics(tmp_path) == ([{"step": 1, "loss": None}], [{"step": 1, "eval_loss": None}])


def test_a_run_that_goes_on_mends_the_log_of_one_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": -Infinity}\n{"step": 3, "lo')
    assert [line["loss"] for line in read_metrics(tmp_path)[0]] == [None, None]
    with MetricLog(tmp_path, False, after_step=2) as log:
        log.write({"step": 3, "loss": 1.5})
    assert [strict(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": None},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 1.5},
    ]


def test_a_run_without_a_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_metrics(tmp_path)


def test_without_tensorboard_no_event_file_is_written(tmp_path: Path) -> None:
    write(tmp_path, False, TRAIN)
    assert [file.name for file in tmp_path.iterdir()] == [METRICS_FILE]
