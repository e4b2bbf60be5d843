"""States as JSON and arrays: everything comes back, and what cannot is told."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.dropin.plain import put_together, take_apart
from hvdtrain.core.errors import CheckpointError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.text() | st.integers() | st.sampled_from(["hvdtrain.array", "hvdtrain.pairs", "hvdtrain.float"])
TREES = st.recursive(
    LEAVES, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(KEYS, inside, max_size=3)
)


def there_and_back(tree: Any, like: Any = None) -> Any:
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps(
        take_apart(tree, "state", lambda leaf: isinstance(leaf, np.ndarray), arrays), allow_nan=False
    )
    return put_together(json.loads(text), arrays.pop, like)


@given(TREES)
def test_everything_comes_back(tree: Any) -> None:
    # NaN is not equal to itself.
    assert repr(there_and_back(tree)) == repr(tree)


def test_arrays_come_back_under_their_paths() -> None:
    arrays: dict[str, np.ndarray] = {}
    tree = {"w": {"exp_avg": np.ones(2), "steps": [np.zeros(1), 3]}}
    record = take_apart(tree, "state", lambda leaf: isinstance(leaf, np.ndarray), arrays)
    assert [*arrays] == ["state.w.exp_avg", "state.w.steps.0"]
    found = put_together(record, arrays.__getitem__)
    assert found["w"]["exp_avg"] is tree["w"]["exp_avg"]
    assert found["w"]["steps"] == [tree["w"]["steps"][0], 3]  # type: ignore[index]


def test_types_are_those_of_today() -> None:
    state = {"betas": (0.9, 0.99), "milestones": Counter({3: 1, 5: 2}), "inner": OrderedDict(a=(1, [2]))}
    found = there_and_back(state, like={**state, "betas": (0.5, 0.5)})
    assert found == state
    assert [type(each) for each in found.values()] == [tuple, Counter, OrderedDict]
    assert type(found["inner"]["a"]) is tuple


@pytest.mark.parametrize(
    "tree", [{"f": [1, print]}, {"f": [0, {1, 2}]}, {"f": [0, b"bytes"]}, {"f": [0, 1j]}]
)
def test_what_cannot_be_saved_is_told(tree: Any) -> None:
    with pytest.raises(CheckpointError, match=r"state\.f\.1: a \w+ cannot be saved"):
        there_and_back(tree)


def test_two_arrays_of_one_path_are_told() -> None:
    with pytest.raises(CheckpointError, match="two arrays"):
        there_and_back({"a": {"b": np.ones(1)}, "a.b": np.ones(1)})
