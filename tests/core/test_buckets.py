"""Gradient buckets: every weight exactly once, in reverse, within the cap, decay in front."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.update.buckets import plan_buckets

SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
WEIGHTS = st.lists(st.tuples(SHAPES, st.booleans()), min_size=1, max_size=30).map(
    lambda found: [Weight(f"w{i}", shape, decays, ZEROS) for i, (shape, decays) in enumerate(found)]
)
CAPS = st.floats(1.0, 10_000.0)


@given(WEIGHTS, st.sampled_from([2, 4, 8]), CAPS)
def test_every_weight_is_in_exactly_one_bucket(weights: list[Weight], itemsize: int, cap: float) -> None:
    buckets = plan_buckets(weights, itemsize, cap)
    placed = [weight for bucket in buckets for weight in bucket.weights]
    assert sorted(w.name for w in placed) == sorted(w.name for w in weights)
    assert sum(bucket.size for bucket in buckets) == sum(weight.size for weight in weights)
    assert [bucket.index for bucket in buckets] == [*range(len(buckets))]


@given(WEIGHTS, st.sampled_from([2, 4, 8]), CAPS)
def test_a_bucket_keeps_the_cap_and_closes_no_sooner_than_it_must(
    weights: list[Weight], itemsize: int, cap: float
) -> None:
    buckets = plan_buckets(weights, itemsize, cap)
    for bucket in buckets:
        assert bucket.size * itemsize <= cap or len(bucket.weights) == 1
    order = {weight.name: i for i, weight in enumerate(weights)}
    for bucket, following in itertools.pairwise(buckets[:-1]):
        first = max(following.weights, key=lambda w: order[w.name])
        assert (bucket.size + first.size) * itemsize > cap


@given(WEIGHTS, st.sampled_from([2, 4, 8]), CAPS)
def test_the_last_bucket_of_layers_is_a_quarter_and_no_smaller_than_it_must(
    weights: list[Weight], itemsize: int, cap: float
) -> None:
    *before, last = plan_buckets(weights, itemsize, cap)
    assert last.size * itemsize <= cap / 4 or len(last.weights) == 1
    order = {weight.name: i for i, weight in enumerate(weights)}
    for bucket in before[-1:]:
        next_to_it = min(bucket.weights, key=lambda w: order[w.name])
        first = max(last.weights, key=lambda w: order[w.name])
        was_full = (bucket.size + first.size) * itemsize > cap
        assert (last.size + next_to_it.size) * itemsize > cap / 4 or was_full


def test_embeddings_complete_at_once_and_are_not_cut() -> None:
    weights = [Weight(f"w{i}", (4,), True, ZEROS, embedding=True) for i in range(6)]
    assert [bucket.size for bucket in plan_buckets(weights, 4, 100)] == [24]


@given(WEIGHTS, CAPS)
def test_buckets_close_in_the_order_in_which_backward_finishes(weights: list[Weight], cap: float) -> None:
    order = {weight.name: i for i, weight in enumerate(weights)}
    spans = [[order[w.name] for w in bucket.weights] for bucket in plan_buckets(weights, 4, cap)]
    for earlier, later in itertools.pairwise(spans):
        assert min(earlier) > max(later)


@given(WEIGHTS, CAPS)
def test_the_weights_that_decay_are_one_slice_at_the_front(weights: list[Weight], cap: float) -> None:
    for bucket in plan_buckets(weights, 4, cap):
        decaying = [w.decays for w in bucket.weights]
        assert decaying == sorted(decaying, reverse=True)


@given(WEIGHTS, CAPS)
def test_sizes_and_shapes_are_those_of_the_members(weights: list[Weight], cap: float) -> None:
    for bucket in plan_buckets(weights, 4, cap):
        assert bucket.shapes == tuple(w.shape for w in bucket.weights)
        assert bucket.sizes == tuple(w.size for w in bucket.weights)
        assert sum(bucket.sizes) == bucket.size


@given(WEIGHTS, st.integers(0, 30), CAPS)
def test_embeddings_share_no_bucket_with_layers_and_come_last(
    weights: list[Weight], embeddings: int, cap: float
) -> None:
    weights = [replace(w, embedding=i < embeddings) for i, w in enumerate(weights)]
    kinds = [{w.embedding for w in bucket.weights} for bucket in plan_buckets(weights, 4, cap)]
    assert all(len(kind) == 1 for kind in kinds)
    late = [kind.pop() for kind in kinds]
    assert late == sorted(late)


@given(WEIGHTS, st.lists(st.integers(0, 2), min_size=30, max_size=30), CAPS)
def test_buckets_of_several_groups_stand_in_the_order_in_which_their_last_gradient_comes(
    weights: list[Weight], groups: list[int], cap: float
) -> None:
    order = {weight.name: i for i, weight in enumerate(weights)}
    buckets = plan_buckets(weights, 4, cap, lambda weight: groups[order[weight.name]])
    complete = [min(order[w.name] for w in bucket.weights) for bucket in buckets]
    assert complete == sorted(complete, reverse=True)
