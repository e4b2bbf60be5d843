"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from hvdtrain.core.checkpoints.arrays import ArrayStream, SavedArrays, write_arrays
from hvdtrain.core.checkpoints.background import BackgroundWriter
from hvdtrain.core.errors import CheckpointError


def full_disk() -> None:
    raise CheckpointError("the disk is full")


def test_what_is_submitted_runs_beside_the_caller_one_at_a_time() -> None:
    free, running, most, order = threading.Event(), 0, 0, []
    writer = BackgroundWriter()

    def write(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert free.wait(60)
        order.append(number)
        running -= 1

    writer.submit(lambda: write(0))
    assert not order
    writer.check()
    # The second one waits until somebody lets the first one go.
    threading.Timer(0.05, free.set).start()
    writer.submit(lambda: write(1))
    assert order[0] == 0
    writer.submit(lambda: write(2))
    writer.wait()
    assert (order, most) == ([0, 1, 2], 1)
    writer.wait()


def test_an_error_is_raised_once_by_the_next_call() -> None:
    for call in (BackgroundWriter.wait, lambda writer: writer.submit(lambda: None)):
        writer = BackgroundWriter()
        writer.submit(full_disk)
        with pytest.raises(CheckpointError, match="the disk is full"):
            call(writer)
        writer.wait()
    writer = BackgroundWriter()
    writer.submit(full_disk)
    with pytest.raises(CheckpointError, match="the disk is full"):
        while True:
            # As between updates: it never waits.
            writer.check()


def test_leaving_waits_and_keeps_the_first_error() -> None:
    done = []
    with BackgroundWriter() as writer:
        writer.submit(lambda: done.append(True))
    assert done
    with pytest.raises(CheckpointError, match="the disk is full"), BackgroundWriter() as writer:
        writer.submit(full_disk)
    with pytest.raises(ValueError, match="of the loop"), BackgroundWriter() as writer:
        writer.submit(full_disk)
        raise ValueError("of the loop")


def test_a_snapshot_stays_as_it_is(tmp_path: Path) -> None:
    """What comes one at a time is made from weights that the next update changes."""
    weights = {"a": np.zeros(3), "b": np.ones(2)}
    stream = ArrayStream(ArrayStream.of(weights).kinds, ((name, w.copy()) for name, w in weights.items()))
    snapshot = stream.snapshot()
    for weight in weights.values():
        weight.fill(7.0)
    write_arrays(tmp_path / "found", snapshot)
    found = SavedArrays(tmp_path / "found")
    assert {name: found[name].tolist() for name in found} == {"a": [0.0] * 3, "b": [1.0] * 2}
