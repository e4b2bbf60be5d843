"""What must hold of every policy, on any number of simulated ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdtrain.core.compression import Bf16, Fp16, Int8, PowerSGD, RandomK, Sign, TopK
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.simulator import Simulator
from hvdtrain.core.update.buckets import Bucket
from tests.conformance.cases import BUCKETS, POLICIES, bucket, gradients, residual

EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
# Without momentum: DGC's velocity is sent several times, on purpose.
# Without bf16: its sums round where no rank can tell.
KEEPS_WHAT_IT_LOSES = [
    name
    for name, p in POLICIES.items()
    if getattr(p, "use_error_feedback", False) and "dgc" not in name and name != "bf16"
]
# How far the sum of one update may be from the truth, relative to its norm.
ERRORS = {"none": 1e-15, "fp16": 2e-3, "bf16": 2e-2, "int8": 2e-2}


def run(policy: Policy, layout: Bucket, ranks: int, updates: int, dtype: str = "float64") -> Simulator:
    simulator = Simulator(policy, layout, ranks, dtype=dtype)
    for update in range(1, updates + 1):
        simulator.reduce(gradients(update, ranks, layout.size, dtype), update)
        simulator.commit()
    return simulator


@EVERY
@pytest.mark.parametrize("layout", BUCKETS.values(), ids=BUCKETS.keys())
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_all_ranks_have_the_same_and_count_the_planned_bytes(
    policy: Policy, layout: Bucket, dtype: str
) -> None:
    for ranks in (1, 2, 3, 8):
        simulator = Simulator(policy, layout, ranks, dtype=dtype)
        for update in range(1, 7):
            before = simulator.wire_bytes[0]
            given_ = gradients(update, ranks, layout.size, dtype)
            kept = given_.copy()
            found = simulator.reduce(given_, update)
            simulator.commit()
            np.testing.assert_array_equal(given_, kept)
            assert {array.tobytes() for array in found} == {found[0].tobytes()}
            assert found[0].shape == (layout.size,)
            assert found[0].dtype == dtype
            planned = policy.at(update).wire_bytes(layout, np.dtype(dtype).itemsize, ranks)
            assert simulator.wire_bytes[0] - before == planned
            assert len(set(simulator.wire_bytes)) == 1


@pytest.mark.slow
@EVERY
def test_a_huge_bucket_as_well(policy: Policy) -> None:
    layout = bucket(0, (2000, 1501), (7,))
    given_ = gradients(1, 2, layout.size, "float32")
    simulator = Simulator(policy, layout, 2, dtype="float32")
    found = simulator.reduce(given_, 1)
    assert found[0].tobytes() == found[1].tobytes()
    assert np.isfinite(found[0]).all()
    # What arrived is of the same mind as the truth, however little it was.
    assert float(found[0] @ given_.sum(axis=0)) > 0.0
    assert set(simulator.wire_bytes) == {policy.at(1).wire_bytes(layout, 4, 2)}


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(KEEPS_WHAT_IT_LOSES),
    ranks=st.integers(1, 64),
    shapes=st.lists(st.lists(st.integers(1, 12), max_size=3), min_size=1, max_size=4),
    updates=st.integers(1, 4),
)
def test_what_was_sent_and_what_waits_are_all_there_was(
    name: str, ranks: int, shapes: list[list[int]], updates: int
) -> None:
    policy, layout = POLICIES[name], bucket(5, *shapes)
    simulator = Simulator(policy, layout, ranks)
    true, sent = np.zeros(layout.size), np.zeros(layout.size)
    for update in range(1, updates + 1):
        given_ = gradients(update, ranks, layout.size)
        sent += simulator.reduce(given_, update)[0]
        simulator.commit()
        true += given_.sum(axis=0)
    waiting = sum(residual(policy, layout, state) for state in simulator.states)
    largest = max(1.0, float(np.abs(true).max())) * ranks
    np.testing.assert_allclose(sent + waiting, true, rtol=0, atol=1e-12 * largest)


@EVERY
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_on_one_rank_is_not_finite_on_any(
    policy: Policy, ranks: int, value: float
) -> None:
    layout = BUCKETS["mixed"]
    for place in (0, 70, layout.size - 1):
        simulator = run(policy, layout, ranks, updates=3)
        given_ = gradients(9, ranks, layout.size)
        given_[-1, place] = value
        for found in simulator.reduce(given_, 4):
            assert not np.isfinite(found).all()


@EVERY
def test_a_skipped_update_leaves_no_trace(policy: Policy) -> None:
    layout = BUCKETS["mixed"]
    calm, disturbed = run(policy, layout, 3, updates=5), run(policy, layout, 3, updates=5)
    disturbed.reduce(np.full((3, layout.size), np.nan), 6)
    given_ = gradients(6, 3, layout.size)
    np.testing.assert_array_equal(calm.reduce(given_, 6)[0], disturbed.reduce(given_, 6)[0])


@EVERY
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [0.0, 1e-310, 1e-40, 1e-30])
def test_zeros_and_tiny_numbers_stay_what_they_are(policy: Policy, dtype: str, size: float) -> None:
    layout = BUCKETS["mixed"]
    simulator = Simulator(policy, layout, 2, dtype=dtype)
    for update in range(1, 5):
        found = simulator.reduce(
            np.sign(gradients(update, 2, layout.size, dtype)) * np.dtype(dtype).type(size), update
        )
        simulator.commit()
        assert np.isfinite(found[0]).all()
        assert np.abs(found[0]).max() <= 1000 * size
    for state in simulator.states:
        assert all(np.isfinite(array).all() for array in state.values())


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("ranks", [1, 4, 64])
@pytest.mark.parametrize("magnitude", [1e-20, 1e-7, 1.0, 1e8])
def test_one_update_is_right_to_the_precision_of_its_numbers(name: str, ranks: int, magnitude: float) -> None:
    layout = bucket(4, (50, 40))
    simulator = Simulator(POLICIES[name], layout, ranks)
    for update in (1, 2, 3):
        given_ = np.random.default_rng(update).normal(size=(ranks, layout.size)) * magnitude
        true = given_.sum(axis=0)
        error = np.linalg.norm(simulator.reduce(given_, update)[0] - true) / np.linalg.norm(true)
        simulator.commit()
        assert error <= ERRORS[name] * max(1.0, update - 1)


@pytest.mark.parametrize("ranks", [1, 5, 64])
def test_fp16_clips_a_sudden_giant_counts_it_and_adapts(ranks: int) -> None:
    layout = bucket(0, (10,))
    simulator = Simulator(Fp16(), layout, ranks)
    usual = np.ones((ranks, 10))
    for update in (1, 2):
        np.testing.assert_allclose(simulator.reduce(usual, update)[0], ranks)
        simulator.commit()
    assert [int(state["clips"]) for state in simulator.states] == [0] * ranks
    giant = usual.copy()
    giant[:, 3] = 1e9
    for update in (3, 4, 5, 6, 7, 8, 9, 10, 11):
        found = simulator.reduce(giant, update)[0]
        simulator.commit()
        assert np.isfinite(found).all()
    np.testing.assert_allclose(found[3], ranks * 1e9, rtol=1e-2)
    clips = [int(state["clips"]) for state in simulator.states]
    assert 0 < clips[0] < 10
    assert len(set(clips)) == 1


def test_bf16_loses_nothing_but_what_sums_round() -> None:
    layout, updates = bucket(0, (500,)), 40
    for ranks in (1, 2, 5):
        simulator = Simulator(Bf16(), layout, ranks)
        true, sent, rounding = np.zeros(500), np.zeros(500), np.zeros(500)
        for update in range(1, updates + 1):
            given_ = gradients(update, ranks, 500)
            sent += simulator.reduce(given_, update)[0]
            simulator.commit()
            true += given_.sum(axis=0)
            # Half a unit in the last of 8 bits, for each partial sum.
            rounding += (ranks - 1) * np.abs(given_).sum(axis=0) * 1.01 * 2.0**-8
        waiting = sum(state["residual"] for state in simulator.states)
        assert (np.abs(sent + waiting - true) <= rounding + 1e-9).all()


@pytest.mark.parametrize("magnitude", [1e-35, 1.0, 1e35])
def test_bf16_needs_no_scale(magnitude: float) -> None:
    given_ = np.array([[1.0, -3.0, 0.5], [2.0, 3.0, 0.25]]) * 2.0 ** np.round(np.log2(magnitude))
    np.testing.assert_array_equal(
        Simulator(Bf16(), bucket(0, (3,)), 2).reduce(given_, 1)[0], given_.sum(axis=0)
    )


def test_topk_sends_the_largest() -> None:
    given_ = np.array([[0.0, 5.0, -7.0, 1.0], [3.0, 0.0, -6.0, 2.0]])
    simulator = Simulator(TopK(ratio=0.5), bucket(0, (4,)), 2)
    np.testing.assert_array_equal(simulator.reduce(given_, 1)[0], [3.0, 5.0, -13.0, 0.0])
    simulator.commit()
    np.testing.assert_array_equal(simulator.states[0]["residual"], [0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(simulator.states[1]["residual"], [0.0, 0.0, 0.0, 2.0])


@pytest.mark.parametrize("policy", [TopK, RandomK])
def test_a_ratio_warms_up_by_factors_of_four(policy: type[TopK] | type[RandomK]) -> None:
    short = policy(ratio=0.001, warmup_steps=8)
    ratios = [short.at(update).ratio for update in range(1, 11)]  # type: ignore[attr-defined]
    assert ratios == [0.25, 0.25, 0.0625, 0.0625, 0.015625, 0.015625, 0.00390625, 0.00390625, 0.001, 0.001]
    assert policy(ratio=0.5, warmup_steps=8).at(1) == policy(ratio=0.5, warmup_steps=8)


@pytest.mark.parametrize("policy", [TopK, RandomK])
def test_dgc_by_the_paper_on_one_rank(policy: type[TopK] | type[RandomK]) -> None:
    simulator = Simulator(policy(ratio=0.1, momentum=0.9, local_clipping=2.0), bucket(0, (20,)), 1)
    u = v = np.zeros(20)
    sent = 0
    for update in range(1, 8):
        given_ = gradients(update, 1, 20)[0]
        clipped = given_ * min(1.0, 2.0 / np.linalg.norm(given_))
        u = 0.9 * u + clipped
        v = v + u
        found = simulator.reduce([given_], update)[0]
        mask = np.abs(v) >= np.sort(np.abs(v))[-2] if policy is TopK else found != 0.0
        assert np.count_nonzero(mask) <= 2
        sent += np.count_nonzero(mask)
        np.testing.assert_allclose(found, np.where(mask, v, 0.0), rtol=1e-12)
        simulator.commit()
        u, v = np.where(mask, 0.0, u), np.where(mask, 0.0, v)
    # Two an update, but for what happened to be 0.
    assert sent > 7


@pytest.mark.parametrize(
    ("block_size", "expected"),
    [(2, [2.0, -2.0, 15.0, 15.0, -30.0]), (3, [14 / 3, -14 / 3, 14 / 3, 25.0, -25.0]), (256, [12.8] * 5)],
)
def test_sign_sends_the_mean_magnitude_of_each_block(block_size: int, expected: list[float]) -> None:
    given_ = np.array([[1.0, -3.0, 10.0, 20.0, -30.0]])
    found = Simulator(Sign(block_size=block_size), bucket(0, (2,), (3,)), 1).reduce(given_, 1)[0]
    np.testing.assert_allclose(found, np.copysign(expected, given_[0]), rtol=1e-6)


def test_randomk_sends_every_element_in_time() -> None:
    simulator = Simulator(RandomK(ratio=0.1), bucket(0, (50,)), 2)
    reached = np.zeros(50, bool)
    for update in range(1, 100):
        found = simulator.reduce(np.ones((2, 50)), update)[0]
        assert np.count_nonzero(found) == 5
        reached |= found != 0
        simulator.commit()
    assert reached.all()


def test_powersgd_finds_a_matrix_of_low_rank_exactly() -> None:
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(3, 30, 4)) @ generator.normal(size=(4, 25))
    policy = PowerSGD(start_powerSGD_iter=0, matrix_approximation_rank=12, min_compression_rate=0.5)
    found = Simulator(policy, bucket(0, (30, 25)), 3).reduce(matrix.reshape(3, -1), 1)[0]
    np.testing.assert_allclose(found, matrix.sum(axis=0).ravel(), atol=1e-11)


@pytest.mark.parametrize("rank", [1, 4])
def test_powersgd_is_pytorchs_hook(rank: int) -> None:
    """The same update from the same Q as `torch.distributed`'s PowerSGD hook defines it."""
    layout, ranks = bucket(0, (30, 20)), 3
    policy = PowerSGD(start_powerSGD_iter=0, matrix_approximation_rank=rank)
    simulator = Simulator(policy, layout, ranks)
    q = simulator.states[0]["q"].reshape(rank, 20).T
    errors = np.zeros((ranks, 30, 20))
    for update in range(1, 5):
        given_ = gradients(update, ranks, layout.size)
        matrices = given_.reshape(ranks, 30, 20) + errors
        p = np.linalg.qr((matrices @ q).mean(axis=0))[0]
        q = (matrices.transpose(0, 2, 1) @ p).mean(axis=0)
        errors = matrices - p @ q.T
        found = simulator.reduce(given_, update)[0]
        simulator.commit()
        np.testing.assert_allclose(found, ranks * (p @ q.T).ravel(), atol=1e-10)


def test_powersgd_defaults_and_choice_are_pytorchs() -> None:
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, _should_compress

    theirs, ours = PowerSGDState(None), PowerSGD()
    for name in PowerSGD.model_fields.keys() - {"type", "match"}:
        assert getattr(ours, name) == getattr(theirs, name), name
    for rows, columns, rank in [
        (4, 4, 1),
        (5, 5, 1),
        (8, 100, 3),
        (6, 100, 3),
        (100, 100, 25),
        (100, 101, 25),
    ]:
        layout = bucket(0, (rows, columns))
        compressed = PowerSGD(matrix_approximation_rank=rank).wire_bytes(layout, 1, 2) < layout.size
        assert compressed == _should_compress(rows, columns, rank, 2)[0], (rows, columns, rank)


def test_int8_rounds_to_the_truth_on_average() -> None:
    layout = bucket(0, (64,))
    given_ = gradients(1, 2, 64)
    policy = Int8(use_error_feedback=False, block_size=64)
    simulator = Simulator(policy, layout, 2)
    mean = np.mean([simulator.reduce(given_, update)[0] for update in range(1, 2001)], axis=0)
    # Each rounding is off by at most a step, its variance at most a quarter of a step squared.
    step = np.abs(given_).max() * 4 / 127
    assert np.abs(mean - given_.sum(axis=0)).max() < 6 * step / np.sqrt(2000)
