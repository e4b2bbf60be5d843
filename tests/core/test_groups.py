"""Groups of weights: the first pattern that fits, few slices, and patterns without a weight told."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import bert
from hvdtrain.core.spec.job_spec import parse_spec
from hvdtrain.core.spec.optimizer_sections import GroupSpec, OptimizerSpec
from hvdtrain.core.update.buckets import plan_buckets
from hvdtrain.core.update.groups import check_groups, setting_of
from hvdtrain.core.update.shards import Shard
from tests.core.test_plan import DECAYED, SPEC, WEIGHTS, plan

BERT = bert.weights(bert.ModelSpec(num_hidden_layers=3))
KINDS: Any = st.sampled_from(["adamw", "sgd", "lamb", "lars"])
PATTERNS = ["*", "*.bias", "*.layer.1.*", "bert.embeddings.*", "*LayerNorm*", "cls.*", "nothing"]
GROUPS = st.lists(
    st.builds(
        GroupSpec,
        match=st.sampled_from(PATTERNS),
        learning_rate_factor=st.sampled_from([0.0, 0.5, 1.0]),
        weight_decay=st.sampled_from([None, 0.0, 0.2]),
    ),
    max_size=4,
).map(tuple)


@given(KINDS, GROUPS)
def test_the_first_pattern_that_fits_decides(kind: Any, groups: tuple[GroupSpec, ...]) -> None:
    spec = OptimizerSpec(type=kind, weight_decay=0.1, groups=groups)
    for weight in BERT:
        found, own = setting_of(spec, weight), 0.1 if weight.decays else 0.0
        fitting = [group for group in groups if fnmatchcase(weight.name, group.match)]
        factor, decay = 1.0, own
        if fitting:
            factor, given = fitting[0].learning_rate_factor, fitting[0].weight_decay
            decay = own if given is None else given
        assert (found.learning_rate_factor, found.weight_decay) == (factor, decay)
        assert found.adapts == (kind in ("lamb", "lars") and len(weight.shape) > 1)


@given(KINDS, GROUPS, st.floats(1e4, 1e9), st.integers(1, 5))
def test_pieces_are_the_bucket_cut_where_the_setting_or_the_owner_changes(
    kind: Any, groups: tuple[GroupSpec, ...], cap: float, ranks: int
) -> None:
    spec = OptimizerSpec(type=kind, groups=groups)
    for bucket in plan_buckets(BERT, 4, cap):
        size, place, found = -(-bucket.size // ranks), 0, dict.fromkeys(bucket.weights, 0)
        for rank in range(ranks):
            pieces = Shard(bucket, ranks, rank, size).pieces(spec)
            assert all(one.setting != other.setting for one, other in itertools.pairwise(pieces))
            for piece in pieces:
                assert piece.start == place
                assert rank * size <= place < place + piece.size <= (rank + 1) * size
                for weight, count in piece.parts:
                    assert setting_of(spec, weight) == piece.setting
                    found[weight] += count
                place += piece.size
        assert [*found.values()] == [*bucket.sizes]


def test_without_groups_a_bucket_has_two_pieces() -> None:
    for kind in ("adamw", "lamb"):
        spec = OptimizerSpec(type=kind)  # type: ignore[arg-type]
        assert all(len(Shard.whole(bucket).pieces(spec)) <= 2 for bucket in plan_buckets(BERT, 4, 1e8))


@pytest.mark.parametrize(
    ("matches", "told"),
    [
        (
            ["*.layers.1.*"],
            r"optimizer\.groups\.0\.match: '\*\.layers\.1\.\*': no weight .* nearest is '.*layer",
        ),
        (["*.bias", "*.query.bias"], r"optimizer\.groups\.1\.match: .* taken by an entry before it"),
    ],
)
def test_a_group_without_a_weight_is_refused(matches: list[str], told: str) -> None:
    spec = OptimizerSpec(groups=tuple(GroupSpec(match=match) for match in matches))
    with pytest.raises(SpecError, match=told):
        check_groups(spec, [weight.name for weight in BERT])


def test_a_plan_refuses_it_and_counts_what_decays() -> None:
    with pytest.raises(SpecError, match=r"optimizer\.groups\.0\.match: 'kernal': .* nearest is 'kernel'"):
        plan("optimizer.groups=[{match: kernal}]")
    assert plan("optimizer.groups=[{match: kernel, weight_decay: 0.0}]").decayed_parameters == 800
    assert plan("optimizer.groups=[{match: bias, weight_decay: 0.1}]").decayed_parameters == 872
    frozen = plan("optimizer.groups=[{match: kernel, learning_rate_factor: 0.0}]")
    assert frozen.decayed_parameters == 864
    assert frozen.buckets == plan().buckets


def test_memory_of_their_moments_and_of_lambs_step() -> None:
    memory = plan("optimizer.type=lars").memory
    assert memory.optimizer == memory.weights
    # The step of the largest slice: of all that decays.
    memory = plan("optimizer.type=lamb").memory
    assert memory.optimizer == memory.weights * 2 + DECAYED * 4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.groups=[{matches: a}]", "optimizer.groups.0.matches: unknown key .*did you mean 'match'"),
        ("optimizer.groups=[{learning_rate_factor: 1.0}]", "optimizer.groups.0.match: required"),
        ("optimizer.groups=[{match: a, weight_decay: -1.0}]", "optimizer.groups.0.weight_decay: .* 0"),
        ("optimizer.groups=[{match: ''}]", "optimizer.groups.0.match: "),
        ("optimizer.type=lars", "optimizer.momentum 0.9: compression takes momentum before it"),
    ],
)
def test_a_bad_section_is_told(override: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        parse_spec(yaml.safe_dump(SPEC | {"compression": {"type": "topk", "momentum": 0.9}}), [override])


def test_the_axes_of_a_weight_decide_on_its_trust_ratio_and_not_its_decay() -> None:
    spec = OptimizerSpec(type="lamb", groups=(GroupSpec(match="*", weight_decay=0.5),))
    for weight in WEIGHTS:
        assert setting_of(spec, weight) == setting_of(spec, replace(weight, decays=not weight.decays))
        assert setting_of(spec, weight).adapts == (len(weight.shape) == 2)
