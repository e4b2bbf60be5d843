"""Comparing runs: the largest difference is found, and nothing is compared that cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib import image

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.metrics import MetricLog
from hvdtrain.core.report import compare_runs, plot_losses


def run(directory: Path, losses: list[float], evaluations: Sequence[float] = (), first: int = 1) -> Path:
    directory.mkdir()
    with MetricLog(directory, tensorboard=False) as log:
        for step, loss in enumerate(losses, first):
            log.write({"step": step, "loss": loss})
        for loss in evaluations:
            log.write({"step": len(losses), "eval_loss": loss})
    return directory


def test_the_largest_relative_difference_is_found_where_it_is(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [10.0, 8.0, 2.0, 1.0])
    second = run(tmp_path / "b", [10.1, 8.0, 1.5, 1.2])
    found = compare_runs(first, second)
    assert (found.largest, found.at_step, found.updates) == (0.25, 3, 4)


def test_only_the_first_updates_are_compared_when_asked(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [4.0, 4.0, 4.0]), run(tmp_path / "b", [4.0, 5.0, 8.0])
    found = compare_runs(first, second, updates=2)
    assert (found.largest, found.at_step, found.updates) == (0.25, 2, 2)


def test_equal_runs_do_not_differ(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [3.0, 2.0]), run(tmp_path / "b", [3.0, 2.0])
    assert compare_runs(first, second).largest == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_loss_that_is_no_number_is_infinitely_far(tmp_path: Path, bad: float, side: int) -> None:
    curves = [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]
    curves[side][1] = bad
    found = compare_runs(run(tmp_path / "a", curves[0]), run(tmp_path / "b", curves[1]))
    assert (found.largest, found.at_step) == (math.inf, 2)


@pytest.mark.parametrize(("losses", "first_step"), [([1.0], 1), ([1.0, 1.0], 2), ([], 1)])
def test_runs_that_logged_other_updates_are_refused(
    tmp_path: Path, losses: list[float], first_step: int
) -> None:
    first, second = run(tmp_path / "a", [1.0, 1.0]), run(tmp_path / "b", losses, first=first_step)
    for one, other in ((first, second), (second, first)):
        with pytest.raises(TrainingError, match="cannot be compared"):
            compare_runs(one, other)


@pytest.mark.parametrize("evaluations", [[], [2.5, 2.0]])
def test_the_picture_is_a_png(tmp_path: Path, evaluations: list[float]) -> None:
    runs = {name: run(tmp_path / name, [3.0, 2.0], evaluations) for name in ("torch", "tensorflow")}
    plot_losses(runs, tmp_path / "curves.png")
    height, width, _ = image.imread(tmp_path / "curves.png").shape
    assert min(height, width) > 300
