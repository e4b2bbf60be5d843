"""How parameters are shared out over ranks."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.dropin import Owners, Parameter

SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), max_size=30)


def named(shapes: list[tuple[int, ...]], trainable: bool = True) -> list[Parameter]:
    return [Parameter(f"p{i}", shape, "float32", trainable) for i, shape in enumerate(shapes)]


@given(SHAPES, SHAPES, st.integers(1, 6))
def test_each_has_one_owner_and_no_rank_much_more_than_its_share(
    first: list[tuple[int, ...]], then: list[tuple[int, ...]], ranks: int
) -> None:
    parameters = named([*first, *then])
    every = [Owners(ranks, rank) for rank in range(ranks)]
    for owners in every:
        owners.add(parameters[: len(first)])
        before = {p.name: owners.of(p.name) for p in parameters[: len(first)]}
        owners.add(parameters)
        assert before.items() <= {p.name: owners.of(p.name) for p in parameters}.items()
    owned = [[p for p in parameters if owners.owns(p.name)] for owners in every]
    assert sum(map(len, owned)) == len(parameters)
    sizes = [math.prod(p.shape) for p in parameters]
    for own in owned:
        assert sum(math.prod(p.shape) for p in own) <= sum(sizes) / ranks + max(sizes, default=0)
    names = [p.name for p in parameters]
    assert every[0].in_order(names) == [p.name for own in owned for p in own]


def test_what_is_frozen_counts_nothing() -> None:
    owners = Owners(2, 0)
    owners.add([Parameter("frozen", (99,), "float32", trainable=False), *named([(4,), (3,), (1,)])])
    assert [owners.of(f"p{i}") for i in range(3)] == [0, 1, 1]
