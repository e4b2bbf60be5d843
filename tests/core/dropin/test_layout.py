"""Parameters of mixed dtypes in buckets: each once, none with strangers, none above the cap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.dropin import Parameter, accumulator, lay_out, make_settings
from hvdtrain.core.errors import SpecError

DTYPES = ("float16", "bfloat16", "float32", "float64")
parameters = st.lists(
    st.tuples(st.integers(1, 50), st.sampled_from(DTYPES), st.booleans()), min_size=1, max_size=20
).map(lambda rows: [Parameter(f"p{i}", (n,), dtype, trains) for i, (n, dtype, trains) in enumerate(rows)])


@given(parameters)
def test_every_parameter_is_in_one_bucket_with_its_like(found: list[Parameter]) -> None:
    cap = 200 / 2**20
    settings = make_settings("w", bucket_cap_mb=cap, compression=[{"match": "p1*", "type": "fp16"}])
    by_name = {p.name: p for p in found}
    buckets = lay_out(found, settings, first=3)
    assert [b.index for b in buckets] == [*range(3, 3 + len(buckets))]
    assert sorted(w.name for b in buckets for w in b.weights) == sorted(by_name)
    for bucket in buckets:
        members = [by_name[w.name] for w in bucket.weights]
        [dtype] = {accumulator(p) for p in members}
        assert len({p.trainable for p in members}) == len({p.name.startswith("p1") for p in members}) == 1
        itemsize = {"float32": 4, "float64": 8}[dtype]
        assert bucket.size * itemsize <= 200 or len(members) == 1


def test_sixteen_bits_add_up_in_thirty_two() -> None:
    assert [accumulator(Parameter("p", (), d)) for d in DTYPES] == ["float32"] * 3 + ["float64"]


def test_a_dtype_without_an_accumulator_is_named() -> None:
    with pytest.raises(SpecError, match=r"'spectrum'.*complex64.*float32"):
        lay_out([Parameter("spectrum", (2,), "complex64")], make_settings("w"))
