"""What updates are made of: stages, a number of tokens, and the same samples whatever the ranks."""

from __future__ import annotations

from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data.order import epoch_order, global_batches, rank_share
from hvdtrain.core.spec.sections import AccumulationStage, BatchSpec
from hvdtrain.core.update.accumulation import Accumulation, resolve_accumulation

TOKENS = st.lists(st.integers(1, 50), min_size=1, max_size=60).map(lambda found: np.array(found, np.int64))


def test_stages_hold_from_their_step_on() -> None:
    spec = BatchSpec(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=(
            AccumulationStage(from_step=0, steps=1),
            AccumulationStage(from_step=2, steps=4),
            AccumulationStage(from_step=3, steps=2),
        ),
    )
    batches = list(islice(global_batches(0, np.ones(100, np.int64), resolve_accumulation(spec, 3)), 5))
    assert [(len(b.indices), b.micro_batches) for b in batches] == [(6, 1), (6, 1), (24, 4), (12, 2), (12, 2)]


@given(tokens=TOKENS, target=st.integers(1, 300), epochs=st.integers(1, 3))
def test_an_update_takes_the_fewest_samples_with_the_tokens_asked_for(
    tokens: np.ndarray, target: int, epochs: int
) -> None:
    order = [epoch_order(5, epoch, len(tokens)) for epoch in range(epochs)]
    expected, taken = [], []
    for samples in order:
        for sample in samples:
            taken.append(int(sample))
            if tokens[taken].sum() >= target:
                expected.append(taken)
                taken = []
        if taken:
            expected.append(taken)
            taken = []
    found = islice(global_batches(5, tokens, Accumulation(1, 4, target_tokens=target)), len(expected))
    assert [batch.indices.tolist() for batch in found] == expected


@given(
    tokens=TOKENS,
    target=st.integers(1, 300),
    size=st.integers(1, 5),
    per_device=st.integers(1, 6),
)
def test_the_samples_of_an_update_do_not_depend_on_the_ranks_and_fit_their_micro_batches(
    tokens: np.ndarray, target: int, size: int, per_device: int
) -> None:
    alone = islice(global_batches(1, tokens, Accumulation(1, 1, target_tokens=target)), 12)
    split = Accumulation(size, per_device, target_tokens=target)
    for one, batch in zip(alone, global_batches(1, tokens, split), strict=False):
        shares = [
            share
            for rank in range(size)
            for share in rank_share(batch.indices, rank, size, batch.micro_batches, per_device)
        ]
        np.testing.assert_array_equal(np.concatenate(shares), one.indices)
        # No micro-batch is empty on every rank.
        assert (batch.micro_batches - 1) * per_device * size < len(one.indices) + size * per_device
