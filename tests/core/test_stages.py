"""Memory and bytes of every `zero_stage`, and the largest model that fits with it."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import family_of
from hvdtrain.core.families.weights import trained
from hvdtrain.core.plan.plan import Plan, make_plan
from hvdtrain.core.plan.stages import ZERO_STAGES, Stage, Stages, compare_stages
from hvdtrain.core.plan.table import print_stages
from hvdtrain.core.spec.job_spec import JobSpec, load_spec, parse_spec

GPT2 = {
    "model": {"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 4, "vocab_size": 512},
    "data": {"corpus": "python-docs", "max_seq_length": 32},
    "batch": {"per_device_train_batch_size": 1},
    "communication": {"bucket_cap_mb": 0.1},
    "max_steps": 10,
}


def spec_of(*overrides: str, **model: Any) -> JobSpec:
    return parse_spec(yaml.safe_dump(GPT2 | {"model": GPT2["model"] | model}), overrides)


def plan(spec: JobSpec, size: int = 2) -> Plan:
    family = family_of(spec.model)
    return make_plan(
        spec,
        trained(family.weights(spec.model)),
        size=size,
        threads=1,
        train_tokens=np.full(100, 32),
        validation_samples=0,
        family=family,
    )


def compare(spec: JobSpec, size: int = 2, available: int | None = None, *stages: int) -> Stages:
    family = family_of(spec.model)
    return compare_stages(spec, stages or ZERO_STAGES, lambda each: plan(each, size), family, available)


LARGE = st.fixed_dictionaries(
    {
        "n_embd": st.sampled_from([1024, 1280, 2048]),
        "n_layer": st.integers(6, 24),
        "vocab_size": st.integers(1000, 30_000),
        "n_head": st.just(8),
        "tie_word_embeddings": st.booleans(),
    }
)


@settings(max_examples=25)
@given(LARGE, st.integers(2, 64), st.sampled_from(["adamw", "sgd", "lars"]), st.booleans())
def test_each_stage_takes_less_than_the_one_before(
    model: dict[str, Any], ranks: int, optimizer: str, mixed: bool
) -> None:
    precision = f"mixed_precision={'bf16' if mixed else 'no'}"
    spec = spec_of(f"optimizer.type={optimizer}", "communication.bucket_cap_mb=25", precision, **model)
    plans = [plan(spec.model_copy(update={"zero_stage": stage}), ranks) for stage in ZERO_STAGES]
    for before, after in pairwise(plans):
        assert after.memory.total < before.memory.total
    whole = plans[0].memory.optimizer
    for sharded in plans[1:]:
        # Of each bucket a rank owns one element more than its part at most.
        padding = len(sharded.buckets) * whole / plans[0].parameters
        assert whole / ranks <= sharded.memory.optimizer < whole / ranks + padding
    assert plans[2].wire_bytes_per_update == plans[1].wire_bytes_per_update


@pytest.mark.parametrize(
    ("vocabulary", "tied", "in_use"),
    [
        # Two layers beside each other.
        (16, False, 2 * 244),
        # The table and the positions; the head, as large as the table, is far from it.
        (1000, False, 4000 + 128),
        (1000, True, 4000 + 128),
    ],
)
def test_sharded_weights_are_shards_and_two_neighbours(vocabulary: int, tied: bool, in_use: int) -> None:
    shape = {"n_embd": 4, "n_layer": 3, "n_head": 1, "n_positions": 32}
    spec = spec_of("zero_stage=3", vocab_size=vocabulary, tie_word_embeddings=tied, **shape)
    # All sizes are even: there is no padding on two ranks.
    elements = 3 * 244 + 128 + 8 + 4 * vocabulary * (1 if tied else 2)
    found = plan(spec)
    assert found.parameters == elements
    assert found.memory.weights == 4 * (elements // 2 + in_use)


def test_what_becomes_of_freed_memory_is_noted() -> None:
    told = [
        "go back to the system at once" in " ".join(plan(spec_of(f"zero_stage={n}")).notes) for n in range(4)
    ]
    assert told == [False, False, True, True]


def test_stages_are_those_of_plans() -> None:
    spec = spec_of("zero_stage=2")
    found = compare(spec).found
    assert [*found] == [0, 1, 2, 3]
    for number, stage in found.items():
        expected = plan(spec_of(f"zero_stage={number}"))
        assert stage == Stage(expected.parameters, expected.memory, expected.wire_bytes_per_update)


def test_a_stage_that_the_job_cannot_have_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of("compression.type=topk")
    found = compare(spec)
    print_stages(found, "what each takes")
    shown = capsys.readouterr().out
    assert isinstance(found.found[0], Stage)
    for number in (1, 2, 3):
        assert f"zero_stage {number}: compression.type: topk needs the whole sum" in shown
    total = f"{plan(spec).memory.total / 2**20:.2f} MiB"
    assert ["memory", "per", "rank", *total.split(), "-", "-", "-"] in [r.split() for r in shown.splitlines()]
    assert found.as_dict()["stages"]["1"]["reason"].startswith("compression.type: topk")
    with pytest.raises(SpecError, match="topk needs the whole sum"):
        compare(spec, 2, None, 1, 2)


@settings(max_examples=6)
@given(st.integers(3 * 2**20, 15 * 2**20), st.integers(1, 9))
def test_what_fits_fits_and_a_layer_more_does_not(available: int, ranks: int) -> None:
    spec = spec_of(n_positions=32)
    for number, stage in compare(spec, ranks, available).found.items():
        assert isinstance(stage, Stage) and stage.layers
        deep, deeper = (
            plan(spec_of(f"zero_stage={number}", n_positions=32, n_layer=layers), ranks)
            for layers in (stage.layers, stage.layers + 1)
        )
        assert stage.memory == deep.memory
        assert stage.parameters == deep.parameters
        assert stage.wire_bytes_per_update == deep.wire_bytes_per_update
        assert deep.memory.total <= available < deeper.memory.total


def test_where_no_layer_fits_what_is_lacking_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    least = plan(spec_of("zero_stage=1", n_layer=1)).memory.total
    found = compare(spec_of(), 2, least, 0, 1)
    whole, sharded = found.found.values()
    lacking = plan(spec_of(n_layer=1)).memory.total - least
    assert isinstance(whole, str) and f"and {lacking / 2**20:.2f} MiB of them are lacking" in whole
    assert isinstance(sharded, Stage) and sharded.layers == 1
    print_stages(found, "what fits")
    shown = capsys.readouterr().out
    assert ["n_layer", "-", "1"] in [row.split() for row in shown.splitlines()]
    assert "n_layer is as large as fits" in shown and f"zero_stage 0: {whole}" in shown
    print_stages(compare(spec_of(), 2, 1000), "what fits")
    assert capsys.readouterr().out.count("one layer takes") == 4


def test_a_family_without_a_number_of_layers_is_refused() -> None:
    spec = load_spec("resnet")
    with pytest.raises(SpecError, match="--fit varies the number of layers, and models of model_type resnet"):
        compare(spec, 2, 2**30)


def shown_in_docs() -> list[tuple[str, str]]:
    """The commands that compare stages, and what docs/sharding.md says that they print."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "sharding.md").read_text(encoding="utf-8")
    return re.findall(
        r"^```bash\n(hvdtrain plan [^\n]*)\n```\n\n```\n(.*?)^```$", page, re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize(("command", "printed"), shown_in_docs())
def test_the_guides_tables_are_what_the_commands_print(
    command: str, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command)
    ranks = int(words[words.index("-np") + 1])
    spec = load_spec(words[2], [value for word, value in pairwise(words) if word == "--set"])
    available = 24 * 2**30 if "24GiB" in words else None
    print_stages(
        compare(spec, ranks, available), f"{words[2]}: what each zero_stage takes on {ranks} rank(s)"
    )
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == printed.splitlines()


def test_the_guide_has_tables() -> None:
    assert len(shown_in_docs()) == 3
