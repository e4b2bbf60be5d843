"""Groups of ranks (`process_set=`) that train models of their own in one job."""

from __future__ import annotations

import pytest

from tests.jobs.runs import launch


# The quick ones are torch's.
@pytest.mark.parametrize("framework", ["torch", pytest.param("tensorflow", marks=pytest.mark.slow)])
def test_each_group_trains_as_one_process_on_its_ranks_data(framework: str) -> None:
    done = launch(4, ["-m", "tests.dropin.groups_worker", framework], timeout=200)
    assert done.returncode == 0, done.stdout[-5000:]
    assert done.stdout.count("DONE") == 4
