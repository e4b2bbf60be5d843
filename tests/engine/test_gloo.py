"""The installed Horovod's Gloo: sums of few bytes, and threads that share a core."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.engine import gloo_worker
from tests.engine.gloo_worker import SIZES, numbers
from tests.jobs.runs import launch

# Three take part in every way: in pairs, and one beyond them.
RANKS = [3, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (2, 4, 5, 8))]


@pytest.mark.parametrize("ranks", RANKS)
def test_few_bytes_are_summed_alike_on_all_ranks(ranks: int, tmp_path: Path) -> None:
    done = launch(ranks, [gloo_worker.__file__, "sums", str(tmp_path)], wire="gloo", timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
    results = [dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(ranks)]
    for size in map(str, SIZES):
        expected = np.sum([numbers(int(size), rank) for rank in range(ranks)], axis=0)
        for result in results:
            np.testing.assert_array_equal(result[size], expected)
            np.testing.assert_array_equal(result[size].view(np.uint32), results[0][size].view(np.uint32))


def test_a_thread_that_receives_leaves_the_core_to_one_that_sends() -> None:
    done = launch(2, [gloo_worker.__file__, "core"], wire="gloo", timeout=120)
    assert done.returncode == 0, done.stdout[-3000:]
