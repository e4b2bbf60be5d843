"""Comparing runs: the largest difference is found, and nothing is compared that cannot be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryConverter

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run.metrics import MetricLog
from hvdtrain.core.run.report import compare_runs, draw_losses, plot_losses


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


def drawn(axes: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """What an axes' lines show, by label."""
    return {str(line.get_label()): tuple(map(list, line.get_data())) for line in axes.lines}


def test_the_figure_shows_what_was_logged(tmp_path: Path) -> None:
    runs = {
        "torch": run(tmp_path / "torch", [3.0, 2.0, 1.5], [2.5, 2.25]),
        "tensorflow": run(tmp_path / "tensorflow", [3.0, math.nan, 1.25], [math.inf], first=2),
        "unevaluated": run(tmp_path / "unevaluated", [4.0]),
    }
    (axes,) = draw_losses(runs).axes
    found = drawn(axes)
    assert found["torch"] == ([1, 2, 3], [3.0, 2.0, 1.5])
    assert found["torch, validation"] == ([3, 3], [2.5, 2.25])
    steps, losses = found["tensorflow"]
    assert (steps, [losses[0], losses[2]]) == ([2, 3, 4], [3.0, 1.25])
    assert math.isnan(losses[1])
    assert math.isnan(found["tensorflow, validation"][1][0])
    assert found["unevaluated"] == ([1], [4.0])
    assert "unevaluated, validation" not in found
    # Numbers on numbers: matplotlib makes an axis of categories where it is given texts.
    assert not isinstance(axes.xaxis.get_converter(), StrCategoryConverter)
    assert not isinstance(axes.yaxis.get_converter(), StrCategoryConverter)
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == list(found)


def test_evaluations_are_marks_and_updates_are_lines(tmp_path: Path) -> None:
    (axes,) = draw_losses({"torch": run(tmp_path / "torch", [3.0, 2.0], [2.5])}).axes
    assert [line.get_linestyle() for line in axes.lines] == ["-", "None"]
    assert [line.get_marker() for line in axes.lines] == ["None", "o"]
    assert axes.lines[0].get_color() == axes.lines[1].get_color()


def test_the_picture_is_that_figure(tmp_path: Path) -> None:
    runs = {"torch": run(tmp_path / "torch", [3.0, 2.0], [2.5])}
    plot_losses(runs, tmp_path / "curves.png")
    draw_losses(runs).savefig(tmp_path / "figure.png", dpi=120)
    ours, figures = (image.imread(tmp_path / name) for name in ("curves.png", "figure.png"))
    np.testing.assert_array_equal(ours, figures)
