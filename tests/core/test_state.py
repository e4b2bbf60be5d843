"""Training state on disk, and residuals whose sum outlives a change of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hvdtrain.core.checkpoints.arrays import ArrayStream, write_arrays
from hvdtrain.core.checkpoints.manifest import STATE_FILE
from hvdtrain.core.checkpoints.sharing import share_moments, share_of, total
from hvdtrain.core.checkpoints.state import (
    COMPRESSION_FILE,
    OPTIMIZER_FILE,
    Rows,
    StateRecord,
    layout_of,
    load_state,
)
from hvdtrain.core.compression import Fp16, LocalSGD, NoCompression, TopK
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.state import RunState
from hvdtrain.core.update.precision import LossScale
from tests.conformance.cases import BUCKETS

RANKS = st.integers(1, 7)


MOMENTS = {"w.exp_avg": np.arange(6.0).reshape(2, 3), "w.exp_avg_sq": np.ones((2, 3), np.float32)}
COMPRESSION = (
    {"residual": np.array([[1.0], [2.0]]), "clips": np.array([3, 4]), "maximum": np.array(0.5)},
    {},
    {"q": np.arange(6.0).reshape(2, 3).T},
)


def record(applied: tuple[int, ...] = ()) -> StateRecord:
    run = RunState(step=7, windows=8, samples_consumed=64, skipped_updates=1, loss_scale=LossScale(1024.0, 3))
    return StateRecord(run, 3, "layout", "order", applied)


def save(directory: Path, saved: StateRecord) -> None:
    numbered = {f"{i}.{name}": a for i, arrays in enumerate(COMPRESSION) for name, a in arrays.items()}
    write_arrays(directory / OPTIMIZER_FILE, ArrayStream.of(MOMENTS))
    write_arrays(directory / COMPRESSION_FILE, ArrayStream.of(numbered))
    (directory / STATE_FILE).write_text(saved.text())


@pytest.mark.parametrize("applied", [(), (7, 5)])
def test_what_was_saved_is_what_is_read(tmp_path: Path, applied: tuple[int, ...]) -> None:
    save(tmp_path, record(applied))
    found = load_state(tmp_path)
    assert found.record == record(applied)
    pairs = ((MOMENTS, found.moments), *((a, found.alike(i, ())) for i, a in enumerate(COMPRESSION)))
    for expected, arrays in pairs:
        assert arrays.keys() == expected.keys()
        for name, array in expected.items():
            assert (arrays[name].dtype, arrays[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize("file", [OPTIMIZER_FILE, COMPRESSION_FILE, STATE_FILE])
@pytest.mark.parametrize("content", [None, b"", b'{"step": 3}'])
def test_half_a_checkpoint_is_refused(tmp_path: Path, file: str, content: bytes | None) -> None:
    save(tmp_path, record())
    (tmp_path / file).unlink() if content is None else (tmp_path / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a whole checkpoint-N .*save_steps makes them"):
        load_state(tmp_path)


def rows(array: np.ndarray) -> Rows:
    return [lambda row=row: row for row in array]


@given(
    saved=RANKS.flatmap(lambda n: hnp.arrays(np.float64, (n, 5), elements=st.floats(-1e3, 1e3))),
    ranks=RANKS,
)
def test_residuals_keep_their_sum_on_any_number_of_ranks(saved: np.ndarray, ranks: int) -> None:
    whole = total(rows(saved))
    np.testing.assert_allclose(whole, saved.sum(axis=0), rtol=1e-12, atol=1e-9)
    together = np.sum([share_of(TopK(), "residual", whole, rank, ranks) for rank in range(ranks)], axis=0)
    np.testing.assert_allclose(together, whole, rtol=1e-12, atol=1e-9)


@given(saved=st.lists(st.integers(0, 1000), min_size=1, max_size=7), ranks=RANKS)
def test_counts_keep_their_sum_and_stay_whole(saved: list[int], ranks: int) -> None:
    whole = total(rows(np.array(saved)))
    shares = [share_of(Fp16(), "clips", whole, rank, ranks) for rank in range(ranks)]
    assert sum(int(share) for share in shares) == sum(saved)
    assert all(share.dtype == np.int64 for share in shares)


LOCAL = LocalSGD()


def test_after_local_updates_each_rank_gets_its_own_moments_and_count() -> None:
    assert share_moments(record((7, 3, 6)), Rules((LOCAL,)), 3) == [((0,), 7), ((1,), 3), ((2,), 6)]


# The mean count is 16 / 3. Ranks that update together count the steps of the run, 7.
@pytest.mark.parametrize(
    ("policy", "ranks", "count"),
    [
        pytest.param(LOCAL, 1, 5, id="one rank"),
        pytest.param(LOCAL, 4, 5, id="more ranks"),
        pytest.param(NoCompression(), 3, 7, id="together"),
        pytest.param(NoCompression(), 2, 7, id="together on other ranks"),
        # The second rank has applied 3: by its count, its next update would still be a common one.
        pytest.param(LocalSGD(start_localSGD_iter=4), 3, 7, id="a later start"),
    ],
)
def test_otherwise_all_get_the_mean(policy: Policy, ranks: int, count: int) -> None:
    ((whose, found),) = share_moments(record((7, 3, 6)), Rules((policy,)), ranks)
    assert ([*whose], found) == ([0, 1, 2], count)


@pytest.mark.parametrize("policy", [LOCAL, NoCompression()])
def test_moments_that_are_alike_on_all_ranks_are_for_all(policy: Policy) -> None:
    assert share_moments(record(), Rules((policy,)), 3) == [((), 7)]


def test_a_layout_tells_other_buckets_and_other_options_apart() -> None:
    buckets = [BUCKETS["mixed"], BUCKETS["vectors"]]
    here = layout_of(buckets, Rules((TopK(),)))
    assert here == layout_of(buckets, Rules((TopK(),)))
    assert here != layout_of(buckets[:1], Rules((TopK(),)))
    assert here != layout_of(buckets, Rules((TopK(ratio=0.5),)))
