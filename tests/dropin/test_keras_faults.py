"""A rank that leaves, stops or never joined: the others are told, and nobody hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

import hvdtrain.keras as keras_hvd
import hvdtrain.tensorflow as tensorflow_hvd
from hvdtrain.core.errors import HvdtrainError
from tests.jobs.runs import launch

LEAVING = str(Path(__file__).with_name("keras_leaving.py"))


LEFT = "rank 0: {}: another rank failed, left the job or waits for something else."


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("return", "a step of fit"),
        pytest.param("elsewhere", "a step of fit", marks=pytest.mark.slow),
        pytest.param("loop", "a step", marks=pytest.mark.slow),
    ],
)
def test_the_others_are_told_in_a_sentence_of_a_rank_that_left_or_waits_elsewhere(
    how: str, what: str
) -> None:
    done = launch(2, [LEAVING, how], timeout=150)
    assert done.returncode != 0
    assert LEFT.format(what) in done.stdout, done.stdout[-3000:]
    assert "Detected at node" not in done.stdout


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_others() -> None:
    # Not Keras' doing: the quick one is torch's.
    done = launch(2, [LEAVING, "raise"], timeout=100)
    assert done.returncode != 0
    assert "no space left for rank 1" in done.stdout


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("stop", "rank 1 stopped answering"),
        pytest.param("kill", "rank 1 ended without leaving training", marks=pytest.mark.slow),
    ],
)
def test_the_stall_guard_names_the_rank(how: str, told: str) -> None:
    done = launch(2, [LEAVING, how, "5"], timeout=100)
    assert done.returncode != 0
    # mpirun ends the others when it sees a killed rank itself.
    assert told in done.stdout or (how == "kill" and "signal 9" in done.stdout), done.stdout[-3000:]


def test_a_forgotten_init_is_named() -> None:
    for call in (keras_hvd.DistributedOptimizer, tensorflow_hvd.DistributedGradientTape):
        with pytest.raises(HvdtrainError, match=r"call hvd.init\(\) first"):
            call(None)
