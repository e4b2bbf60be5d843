"""Policies that give each rank its shard of the sum, on any number of simulated ranks."""

from __future__ import annotations

import numpy as np
import pytest

from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.simulator import Simulator
from hvdtrain.core.update.buckets import Bucket
from tests.conformance.cases import BUCKETS, POLICIES, gradients, residual

SHARDING = {name: policy for name, policy in POLICIES.items() if policy.shards}
ERRORS = {"fp16": 1e-3, "bf16": 2e-2, "int8": 5e-2}
every = pytest.mark.parametrize("policy", SHARDING.values(), ids=SHARDING.keys())
layouts = pytest.mark.parametrize("layout", BUCKETS.values(), ids=BUCKETS.keys())


def test_these_policies_shard() -> None:
    assert {policy.type for policy in SHARDING.values()} == {"none", "fp16", "bf16", "int8"}


@every
@layouts
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_shards_together_are_the_sum(policy: Policy, layout: Bucket, dtype: str) -> None:
    for ranks in (1, 2, 3, 8):
        whole, sharded = (Simulator(policy, layout, ranks, dtype=dtype) for _ in range(2))
        shard = policy.shard_size(layout, ranks)
        for update in range(1, 5):
            mine = gradients(update, ranks, layout.size, dtype)
            kept, before = mine.copy(), sharded.wire_bytes[0]
            expected, found = whole.reduce(mine, update)[0], sharded.scatter(mine, update)
            whole.commit()
            sharded.commit()
            np.testing.assert_array_equal(mine, kept)
            assert {array.shape for array in found} == {(shard,)}
            assert {array.dtype for array in found} == {np.dtype(dtype)}
            together = np.concatenate(found)
            assert not together[layout.size :].any()
            # The order of a sum is NumPy's, and 16 bits round it; int8 rounds the sum only to send it on.
            scale = max(np.abs(expected).max(), 1.0)
            tolerance = ERRORS.get(policy.type, 1e-12 if dtype == "float64" else 1e-5)
            np.testing.assert_allclose(together[: layout.size], expected, rtol=0, atol=tolerance * scale)
            planned = policy.at(update).scatter_bytes(layout, np.dtype(dtype).itemsize, ranks)
            assert set(sharded.wire_bytes) == {before + planned}


@pytest.mark.parametrize("name", ["int8", "int8 small blocks"])
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_what_was_sent_and_what_waits_are_all_there_was(name: str, ranks: int) -> None:
    policy, layout = POLICIES[name], BUCKETS["mixed"]
    simulator, sent, truth = Simulator(policy, layout, ranks), np.zeros(layout.size), np.zeros(layout.size)
    for update in range(1, 5):
        mine = gradients(update, ranks, layout.size)
        sent += np.concatenate(simulator.scatter(mine, update))[: layout.size]
        simulator.commit()
        truth += mine.sum(axis=0)
    waits = sum(residual(policy, layout, state) for state in simulator.states)
    np.testing.assert_allclose(sent + waits, truth, rtol=0, atol=1e-11)


@every
def test_what_is_not_finite_on_one_rank_is_not_finite_in_some_shard(policy: Policy) -> None:
    layout = BUCKETS["mixed"]
    for bad in (np.inf, -np.inf, np.nan):
        mine = gradients(1, 3, layout.size)
        mine[2, 5] = bad
        found = Simulator(policy, layout, 3).scatter(mine, 1)
        assert not np.isfinite(np.concatenate(found)).all()


@every
def test_what_ranks_must_agree_on_is_equal(policy: Policy) -> None:
    simulator = Simulator(policy, BUCKETS["mixed"], 4)
    for update in range(1, 5):
        simulator.scatter(gradients(update, 4, BUCKETS["mixed"].size), update)
        simulator.commit()
        for name in simulator.states[0].keys() - policy.residuals:
            assert len({np.asarray(state[name]).tobytes() for state in simulator.states}) == 1
