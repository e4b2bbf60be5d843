"""Local SGD and DiLoCo on simulated ranks: what an exchange makes of the ranks' weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hvdtrain.core.compression import DiLoCo, LocalSGD, NoCompression
from hvdtrain.core.compression.periodic import Local, Periodic
from hvdtrain.core.compression.simulator import Simulator
from tests.conformance.cases import BUCKETS, gradients

LAYOUT = BUCKETS["mixed"]


@pytest.mark.parametrize("policy", [LocalSGD(), LocalSGD(overlap=True), DiLoCo()], ids=str)
@pytest.mark.parametrize("ranks", [1, 3])
def test_gradients_stay_on_their_rank(policy: Periodic, ranks: int) -> None:
    simulator, given = Simulator(policy, LAYOUT, ranks), gradients(1, ranks, LAYOUT.size)
    assert policy.at(1).local
    np.testing.assert_array_equal(simulator.reduce(given, 1), given)
    assert simulator.wire_bytes == [0] * ranks
    assert policy.at(1).wire_bytes(LAYOUT, 8, ranks) == 0


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_local_sgd_takes_the_mean(ranks: int, dtype: str) -> None:
    policy, weights = LocalSGD(), gradients(2, ranks, LAYOUT.size, dtype)
    simulator = Simulator(policy, LAYOUT, ranks, dtype=dtype)
    simulator.exchange(policy.opening(), weights[:1].repeat(ranks, axis=0))
    assert simulator.wire_bytes == [0] * ranks
    found = simulator.exchange(policy, weights)
    np.testing.assert_allclose(found[0], weights.mean(axis=0), rtol=1e-5 if dtype == "float32" else 1e-13)
    check_exchange(policy, simulator, found, np.dtype(dtype).itemsize)


@pytest.mark.parametrize(("rate", "momentum"), [(0.7, 0.9), (1.0, 0.5), (0.3, 0.0)])
def test_diloco_takes_pytorchs_nesterov_step(rate: float, momentum: float) -> None:
    policy, ranks = DiLoCo(outer_learning_rate=rate, outer_momentum=momentum), 3
    simulator, start = Simulator(policy, LAYOUT, ranks), gradients(3, 1, LAYOUT.size)
    outer = torch.tensor(start[0].copy())
    optimizer = torch.optim.SGD([outer], lr=rate, momentum=momentum, nesterov=momentum > 0)
    weights = np.array(simulator.exchange(policy.opening(), start.repeat(ranks, axis=0)))
    np.testing.assert_array_equal(weights, start.repeat(ranks, axis=0))
    for period in range(5):
        before = simulator.wire_bytes[0]
        local = weights + 0.1 * gradients(10 + period, ranks, LAYOUT.size)
        outer.grad = outer - torch.tensor(local.mean(axis=0))
        optimizer.step()
        found = simulator.exchange(policy, local)
        np.testing.assert_allclose(found[0], outer.numpy(), rtol=1e-11, atol=1e-13)
        simulator.wire_bytes = [sent - before for sent in simulator.wire_bytes]
        check_exchange(policy, simulator, found, 8)
        weights = np.array(found)


def test_an_outer_rate_of_one_without_momentum_is_local_sgd() -> None:
    policy, weights = DiLoCo(outer_learning_rate=1.0, outer_momentum=0.0), gradients(4, 4, LAYOUT.size)
    simulator = Simulator(policy, LAYOUT, 4)
    simulator.exchange(policy.opening(), weights[:1].repeat(4, axis=0))
    np.testing.assert_allclose(
        simulator.exchange(policy, weights)[0], weights.mean(axis=0), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_overlapped_mean_counts_when_the_next_is_due(ranks: int, dtype: str) -> None:
    """Each rank takes steps of its own; x(k+1, r) = mean over ranks of x(k, r) + what r did since."""
    policy, size = LocalSGD(overlap=True), LAYOUT.size
    assert policy.background is not None
    join, average = policy.background
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-13, "atol": 1e-13}
    simulator = Simulator(policy, LAYOUT, ranks, dtype=dtype)
    expected = gradients(5, 1, size, dtype).repeat(ranks, axis=0)
    weights = np.array(simulator.exchange(policy.opening(), expected))
    mean = expected.copy()
    for period in range(6):
        moved = 0.1 * gradients(20 + period, ranks, size, dtype)
        sent = sum(simulator.wire_bytes)
        if period in (3, 5):
            # Somebody looks: what ranks have come to is averaged, and they wait for it.
            expected = mean + moved
            expected = mean = expected.mean(axis=0, keepdims=True).repeat(ranks, axis=0)
            found = simulator.exchange(policy, weights + moved)
            assert {array.tobytes() for array in found} == {found[0].tobytes()}
        else:
            expected = mean + moved
            found = simulator.exchange(join, weights + moved)
            assert sum(simulator.wire_bytes) == sent
            mean = expected.mean(axis=0, keepdims=True).repeat(ranks, axis=0)
            left = simulator.exchange(average, found)
            np.testing.assert_array_equal(left, found)
        assert sum(simulator.wire_bytes) - sent == ranks * policy.wire_bytes(LAYOUT, expected.itemsize, ranks)
        assert policy.wire_bytes(LAYOUT, 8, ranks) == average.wire_bytes(LAYOUT, 8, ranks)
        np.testing.assert_allclose(found, expected, **close)
        weights = np.array(found)


def test_nothing_stands_for_an_exchange_unless_it_is_asked_for() -> None:
    assert [policy.background for policy in (LocalSGD(), DiLoCo())] == [None, None]


def test_post_local_sgd_sums_gradients_at_first() -> None:
    policy = LocalSGD(sync_every=2, start_localSGD_iter=3)
    assert [policy.at(update) for update in range(1, 6)] == [NoCompression()] * 3 + [Local()] * 2


def check_exchange(policy: Periodic, simulator: Simulator, found: list[np.ndarray], itemsize: int) -> None:
    assert {array.tobytes() for array in found} == {found[0].tobytes()}
    assert {array.dtype for array in found} == {np.dtype(f"float{8 * itemsize}")}
    assert set(simulator.wire_bytes) == {policy.wire_bytes(LAYOUT, itemsize, len(found))}
