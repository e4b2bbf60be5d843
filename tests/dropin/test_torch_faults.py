"""A rank that leaves, waits elsewhere or never joined: the others are told, and nobody hangs."""

from __future__ import annotations

from pathlib import Path

import pytest

import hvdtrain.torch as hvd
from hvdtrain.core.errors import HvdtrainError
from tests.jobs.runs import launch

LEAVING = str(Path(__file__).with_name("torch_leaving.py"))


@pytest.mark.parametrize(
    ("how", "cause"),
    [pytest.param("return", "another rank", marks=pytest.mark.slow), ("raise", "no space left for rank 1")],
)
def test_a_rank_that_leaves_early_ends_the_others(how: str, cause: str) -> None:
    done = launch(2, [LEAVING, how], timeout=60)
    assert done.returncode != 0
    assert cause in done.stdout


@pytest.mark.slow
def test_a_rank_that_waits_elsewhere_is_not_waited_for_for_ever() -> None:
    done = launch(2, [LEAVING, "wait"], timeout=100)
    assert done.returncode != 0
    assert "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS" in done.stdout
    assert "what rank 0 never asks for" in done.stdout


def test_a_forgotten_init_is_named() -> None:
    for call, argument in (
        (hvd.DistributedOptimizer, None),
        (hvd.broadcast_parameters, {}),
        (hvd.metric_average, 1.0),
    ):
        with pytest.raises(HvdtrainError, match=r"call hvdtrain.torch.init\(\) first"):
            call(argument)
