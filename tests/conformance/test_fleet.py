"""All ranks at once are what each rank by itself is."""

from __future__ import annotations

import numpy as np
import pytest

from hvdtrain.core.compression import DiLoCo, LocalSGD
from hvdtrain.core.compression.fleet import Fleet
from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.simulator import Simulator
from hvdtrain.core.compression.stacked_ops import StackedOps
from hvdtrain.core.update.buckets import Bucket
from tests.conformance.cases import BUCKETS, POLICIES, gradients

EVERY = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())


@EVERY
@pytest.mark.parametrize("layout", BUCKETS.values(), ids=BUCKETS.keys())
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_fleet_is_the_simulator(policy: Policy, layout: Bucket, dtype: str) -> None:
    close = {"rtol": 1e-10, "atol": 1e-12} if dtype == "float64" else {"rtol": 1e-4, "atol": 1e-4}
    for ranks in (1, 2, 8):
        fleet = Fleet(policy, layout, ranks, seed=3, dtype=dtype)
        simulator = Simulator(policy, layout, ranks, seed=3, dtype=dtype)
        for update in range(1, 7):
            given = gradients(update, ranks, layout.size, dtype)
            kept = given.copy()
            found, expected = fleet.reduce(given, update), simulator.reduce(given, update)
            np.testing.assert_array_equal(given, kept)
            assert found.dtype == dtype
            np.testing.assert_allclose(np.broadcast_to(found, given.shape), np.stack(expected), **close)
            assert fleet.sent == simulator.wire_bytes[0]
            # An update that is not applied leaves no trace.
            if update != 3:
                fleet.commit()
                simulator.commit()
        assert fleet.state_bytes == sum(array.nbytes for array in simulator.states[0].values())


@pytest.mark.parametrize("policy", [LocalSGD(), LocalSGD(overlap=True), DiLoCo()], ids=str)
def test_a_fleet_exchanges_weights_as_the_simulator_does(policy: Periodic) -> None:
    layout, ranks = BUCKETS["mixed"], 4
    fleet, simulator = Fleet(policy, layout, ranks), Simulator(policy, layout, ranks)
    background = policy.background or ()
    for number, now in enumerate((policy.opening(), policy, *background, *background, policy, policy)):
        weights = gradients(number, ranks, layout.size)
        found, expected = fleet.exchange(now, weights), simulator.exchange(now, list(weights))
        np.testing.assert_allclose(np.broadcast_to(found, weights.shape), np.stack(expected), rtol=1e-12)


def test_a_gather_gives_every_rank_what_all_of_them_sent() -> None:
    layout = BUCKETS["vectors"]
    fleet = Fleet(POLICIES["topk"], layout, 16)
    fleet.reduce(gradients(1, 16, layout.size), 1)
    assert fleet.received == 16 * fleet.sent > 0


def test_a_policy_cannot_branch_on_what_may_differ_between_ranks() -> None:
    with pytest.raises(TypeError, match="must not branch"):
        bool(StackedOps(4, 0).rank == 0)
