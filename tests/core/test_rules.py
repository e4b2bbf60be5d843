"""Policies by weight name: the first match wins, buckets never mix, and a useless entry is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.compression import Adasum, Bf16, DiLoCo, Fp16, LocalSGD, NoCompression, PowerSGD, TopK
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.update.buckets import plan_buckets

NAMES = ("embeddings.word.weight", "embeddings.LayerNorm.weight", "layer.0.weight", "layer.0.LayerNorm.bias")
RULES = Rules((TopK(match="*LayerNorm*"), Fp16(match="embeddings.*"), TopK(match="layer.[1-9].*", ratio=0.5)))


def test_the_first_that_matches_wins_and_what_none_matches_travels_as_it_is() -> None:
    buckets = plan_buckets([Weight(n, (4,), True, ZEROS) for n in NAMES], 4, 1e9, RULES.apart)
    found = {w.name: RULES.policy(b) for b in buckets for w in b.weights}
    assert [found[name].type for name in NAMES] == ["fp16", "topk", "none", "topk"]
    assert found[NAMES[1]] is RULES.policies[0]


@given(
    names=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=20, unique=True),
    patterns=st.lists(st.text("ab.*?", min_size=1, max_size=4), min_size=1, max_size=4),
    cap=st.floats(1.0, 100.0),
)
def test_no_bucket_mixes_policies(names: list[str], patterns: list[str], cap: float) -> None:
    rules = Rules(tuple(TopK(match=p, ratio=(i + 1) / 10) for i, p in enumerate(patterns)))
    weights = [Weight(name, (2,), True, ZEROS) for name in names]
    buckets = plan_buckets(weights, 4, cap, rules.apart)
    assert sorted(w.name for b in buckets for w in b.weights) == sorted(names)
    assert all(len({rules.group(w.name) for w in b.weights}) == 1 for b in buckets)
    # A bucket is closed by its last weight: that is the order in which backward fills them.
    last = [min(names.index(w.name) for w in b.weights) for b in buckets[-len({*map(rules.group, names)}) :]]
    assert last == sorted(last, reverse=True)


def test_what_is_in_force_at_an_update_keeps_its_weights() -> None:
    now = Rules((PowerSGD(match="layer.*", start_powerSGD_iter=5), Fp16())).at(5)
    assert now.policies[0] == NoCompression(match="layer.*")
    assert now.group("layer.1") == 0


def test_bytes_add_up_over_the_buckets() -> None:
    weights = [Weight(n, (10,), True, ZEROS) for n in NAMES]
    rules = Rules((Fp16(match="embeddings.*"),))
    buckets = plan_buckets(weights, 4, 1e9, rules.apart)
    assert rules.wire_bytes(buckets, 4, 2) == 2 * 20 + 4 * 20


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (Rules((TopK(match="embedings.*"),)), "compression.match: 'embedings.*': no weight .* 'embeddings."),
        (Rules((Fp16(), TopK(match="layer.*"))), "compression.1.match: 'layer.*': every weight .* before it"),
    ],
)
def test_an_entry_without_weights_is_refused(rules: Rules, told: str) -> None:
    with pytest.raises(SpecError, match=told.replace("*'", r"\*'")):
        rules.check(NAMES)
    RULES_OF_ALL.check(NAMES)


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        (Rules((Bf16(),)), "compression.type"),
        (Rules((TopK(match="*LayerNorm*"), Bf16())), "compression.1.type"),
    ],
)
def test_what_the_wire_cannot_send_is_refused(rules: Rules, field: str) -> None:
    with pytest.raises(SpecError, match=rf"^{field}: bf16 sends bfloat16, .* engine build .* use fp16"):
        rules.check_wire(set())
    rules.check_wire({"bfloat16"})
    Rules((Fp16(),)).check_wire(set())


RULES_OF_ALL = Rules((TopK(match="*LayerNorm*"), Fp16()))


@pytest.mark.parametrize("policy", [Adasum(), LocalSGD(), DiLoCo()], ids=lambda policy: policy.type)
def test_what_is_for_a_whole_job_stands_alone(policy: Policy) -> None:
    Rules((policy,)).check(NAMES)
    part = policy.model_copy(update={"match": "embeddings.*"})
    for policies in ((part,), (part, Fp16()), (Fp16(match="*LayerNorm*"), policy)):
        with pytest.raises(SpecError, match=f"{policy.type} is for all weights of a job or for none"):
            Rules(policies).check(NAMES)


def test_stages_are_what_is_in_force_at_every_update() -> None:
    topk = TopK(ratio=0.001, warmup_steps=10)
    later = PowerSGD(match="*.weight", start_powerSGD_iter=4)
    for rules in (Rules((NoCompression(),)), Rules((Fp16(),)), Rules((topk,)), Rules((later, Fp16()))):
        stages = rules.stages()
        for update in range(1, 15):
            in_force = [found for start, found in stages if start <= update][-1]
            assert in_force == rules.at(update), update
        assert stages[-1][1] == rules
        assert len(stages) == len({repr(found) for _, found in stages})
