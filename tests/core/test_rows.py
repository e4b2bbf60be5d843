"""Lookup tables by their rows: the same sum, chosen by the plan where it is fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.checkpoints.state import layout_of
from hvdtrain.core.compression import NoCompression, Sign
from hvdtrain.core.compression.rows import SparseRows, pays
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.compression.simulator import Simulator
from hvdtrain.core.families import bert
from hvdtrain.core.families.initializers import ZEROS
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import Plan, make_plan
from hvdtrain.core.run.resume import _with_state
from hvdtrain.core.spec.job_spec import load_spec
from hvdtrain.core.update.buckets import Bucket

WORDS = "bert.embeddings.word_embeddings.weight"


def table(rows: int, columns: int, touched: int | None) -> Bucket:
    return Bucket(0, (Weight("table", (rows, columns), True, ZEROS, lookup=True),), touched)


@given(ranks=st.integers(1, 6), columns=st.integers(1, 5), data=st.data())
def test_rows_add_up_to_the_whole(ranks: int, columns: int, data: st.DataObject) -> None:
    rows, touched = 12, data.draw(st.integers(1, 12))
    gradients = np.zeros((ranks, rows, columns))
    for rank in range(ranks):
        chosen = data.draw(st.lists(st.integers(0, rows - 1), max_size=touched, unique=True))
        gradients[rank, chosen] = np.random.default_rng([rank, rows]).normal(size=(len(chosen), columns))
    layout = table(rows, columns, touched)
    simulator = Simulator(SparseRows(), layout, ranks)
    sums = simulator.reduce(list(gradients.reshape(ranks, -1)), 1)
    for found in sums:
        np.testing.assert_allclose(found, gradients.sum(axis=0).ravel(), rtol=1e-14, atol=1e-14)
    assert set(simulator.wire_bytes) == {SparseRows().wire_bytes(layout, 8, ranks)}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_told(bad: float) -> None:
    gradients = np.zeros((2, 8, 3))
    gradients[1, 5, 1] = bad
    gradients[1, :3] = 1.0
    sums = Simulator(SparseRows(), table(8, 3, 4), 2).reduce(list(gradients.reshape(2, -1)), 1)
    assert not any(np.isfinite(found).all() for found in sums)


def test_only_what_would_travel_whole_travels_by_rows() -> None:
    rules = Rules((Sign(match="other"), NoCompression(match="table")))
    assert rules.policy(table(8, 3, 2)) == SparseRows(match="table")
    assert rules.policy(table(8, 3, None)).type == "none"
    assert Rules((Sign(),)).policy(table(8, 3, 2)) == Sign()


def test_it_pays_while_a_rank_receives_less() -> None:
    # 100 x 10 float32: a ring brings 2 x 4,000 x (n - 1) / n bytes, a gather 44 (n - 1) a row.
    assert pays((100, 10), 90, 4, 2)
    assert not pays((100, 10), 91, 4, 2)
    assert pays((100, 10), 22, 4, 8)
    assert not pays((100, 10), 23, 4, 8)
    assert not pays((100, 10), 1, 4, 1)


def plan(size: int, *overrides: str) -> Plan:
    spec = load_spec("bert", ["model.tie_word_embeddings=false", "model.vocab_size=30522", *overrides])
    weights = bert.weights(spec.model)
    return make_plan(
        spec, weights, size=size, threads=1, train_tokens=np.full(9999, 128), validation_samples=0
    )


def test_the_plan_decides_by_counting() -> None:
    def rows_of(found: Plan) -> list[tuple[str, int | None]]:
        return [
            (b.weights[0].name, b.touched_rows)
            for b, c in zip(found.buckets, found.bucket_compression, strict=True)
            if c == "rows"
        ]

    # 8 sequences of 128 tokens, and [PAD].
    assert rows_of(plan(2)) == [(WORDS, 1025)]
    assert rows_of(plan(2, "batch.gradient_accumulation_steps=2")) == [(WORDS, 2049)]
    assert rows_of(
        plan(2, "batch.gradient_accumulation_steps=null", "batch.target_tokens_per_update=500")
    ) == [(WORDS, 629)]
    for whole in (
        plan(1),
        plan(64),
        plan(2, "model.tie_word_embeddings=true"),
        plan(2, "compression.type=fp16"),
        plan(2, "model.vocab_size=1000"),
    ):
        assert rows_of(whole) == []


@pytest.mark.parametrize(
    "compression",
    [
        "{type: topk, ratio: 0.01}",
        "[{match: '*embeddings*', type: none}, {match: '*', type: topk, ratio: 0.1}]",
    ],
)
def test_residuals_of_any_number_of_ranks_fit_the_buckets_of_another(compression: str) -> None:
    sets = [f"compression={compression}", "batch.per_device_train_batch_size=null"]
    sets += ["batch.gradient_accumulation_steps=1", "batch.global_batch_size=64"]
    plans = [plan(size, *sets) for size in (1, 2, 8, 64)]
    chosen = {c for found in plans for c in found.bucket_compression}
    assert ("rows" in chosen) == ("embeddings" in compression)
    layouts = []
    for found in plans:
        rules = load_spec("bert", sets).rules
        layouts.append(_with_state(layout_of(found.buckets, rules)))
    assert layouts == [layouts[0]] * len(plans)
    names = [[weight.name for weight in bucket.weights] for bucket in plans[0].buckets]
    assert [WORDS] in names
    # Those of other buckets do not.
    other = plan(2, *sets, "communication.bucket_cap_mb=1")
    assert _with_state(layout_of(other.buckets, rules)) != layouts[0]
