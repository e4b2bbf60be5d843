"""`zero_stage=1` of the Keras wrapper on 3 ranks, and checkpoints between 3 and 2; on 2 in `test_keras`."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdtrain.core.checkpoints.listing import list_checkpoints
from tests.dropin.test_keras import checks, said

MODULES = ("keras_sharding",)


@pytest.mark.slow
def test_it_changes_nothing_but_memory(tmp_path: Path) -> None:
    for found in said(MODULES, tmp_path, ranks=3):
        failed = {
            check: found.get(check, found["launch"]) for check in checks(MODULES) if found.get(check) != ""
        }
        assert not failed, failed


@pytest.mark.slow
def test_checkpoints_go_from_three_ranks_to_two_and_back(tmp_path: Path) -> None:
    for epochs, ranks in enumerate((3, 2, 3), 1):
        place = tmp_path / str(epochs)
        place.mkdir()
        if epochs > 1:
            (tmp_path / str(epochs - 1) / "handed_on").rename(place / "handed_on")
        for found in said(("keras_sharding_ranks",), place, ranks=ranks):
            assert found.get("check_a_checkpoint_of_other_ranks_and_another_stage") == "", found
        newest = list_checkpoints(place / "handed_on", every_byte=True)[-1]
        assert (newest.step, newest.ranks, newest.state) == (2 * epochs, ranks, "whole")
