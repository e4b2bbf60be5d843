"""Ranks whose values differ are told all of them by name, and those that do not differ are left alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.errors import TrainingError
from hvdtrain.core.run.agreement import agree, flatten

ADVICE = "Do the same everywhere."


def told(ranks: Sequence[dict[str, Any]], optional: Sequence[str] = ()) -> str | None:
    """What `agree` says to these ranks; all must be told the same."""
    met, board, said = threading.Barrier(len(ranks)), {}, {}

    def rank(number: int) -> None:
        def gather(data: bytes) -> list[bytes]:
            board[number] = data
            met.wait()
            found = [board[i] for i in range(len(ranks))]
            met.wait()
            return found

        try:
            agree(ranks[number], gather, ADVICE, optional)
            said[number] = None
        except TrainingError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (common,) = set(said.values())
    return common


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=3))
FIELDS = st.dictionaries(
    st.sampled_from("ab"),
    st.one_of(LEAVES, st.lists(LEAVES, max_size=2), st.dictionaries(st.sampled_from("xy"), LEAVES)),
)


@given(st.lists(FIELDS, min_size=2, max_size=4))
def test_ranks_are_told_what_differs_and_nothing_else(ranks: list[dict[str, Any]]) -> None:
    # 1 and True are equal in Python, and not in JSON.
    flat = [{name: repr(value) for name, value in flatten(rank).items()} for rank in ranks]
    names = {name for rank in flat for name in rank}
    differing = {name for name in names if len({rank.get(name) for rank in flat}) > 1}
    found = told(ranks)
    if not differing:
        assert found is None
        return
    first, *lines, last = str(found).splitlines()
    assert (first, last) == ("ranks of this job differ:", ADVICE)
    assert {line.split(" is ")[0].strip() for line in lines} == differing


def test_each_value_comes_with_its_ranks() -> None:
    rates = [1e-3, 1e-2, 1e-3, 1e-2, 0.1]
    ranks = [{"optimizer": {"learning_rate": rate}, "seed": 3} for rate in rates]
    assert told(ranks) == (
        "ranks of this job differ:\n"
        f"  optimizer.learning_rate is 0.001 on rank 0, but 0.01 on ranks 1, 3 and 0.1 on rank 4\n{ADVICE}"
    )


def test_a_field_that_a_rank_lacks_differs_unless_it_is_optional() -> None:
    ranks = [{"a": 1}, {"a": 1, "b": 2}, {"a": 1}]
    assert "b is missing on rank 0, but 2 on rank 1" in str(told(ranks))
    assert told(ranks, optional=["b"]) is None
    assert "b is 2 on rank 1, but 3 on rank 2" in str(told([*ranks[:2], {"a": 1, "b": 3}], optional=["b"]))


def test_of_many_differences_the_first_are_shown_and_the_rest_counted() -> None:
    found = told([{f"field{i}": i for i in range(30)}, {f"field{i}": -1 for i in range(30)}])
    lines = str(found).splitlines()
    assert lines[-2] == "  and 20 more"
    assert len(lines) == 13


@pytest.mark.parametrize("ranks", [9, 30])
def test_so_are_ranks(ranks: int) -> None:
    found = told([{"a": 0}, *[{"a": 1}] * ranks])
    assert "a is 0 on rank 0, but 1 on ranks 1, 2, 3, 4, 5, 6, 7, 8, ..." in str(found)
