"""On how many ranks an elastic job may run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.errors import LaunchError
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from hvdtrain.core.update.accumulation import resolve_accumulation
from hvdtrain.launch.sizes import Sizes, keep_global_batch


def spec_of(batch: str, *sets: str) -> JobSpec:
    # The packaged one has a batch of its own.
    return load_spec("bert", ["batch=null", f"batch={{{batch}}}", *sets])


@given(
    per_device=st.integers(1, 4),
    total=st.integers(1, 48),
    least=st.integers(1, 8),
    more=st.integers(0, 8),
    slots=st.integers(0, 20),
)
def test_the_most_ranks_that_keep_the_global_batch(
    per_device: int, total: int, least: int, more: int, slots: int
) -> None:
    spec = spec_of(f"per_device_train_batch_size: {per_device}, global_batch_size: {total}")
    sizes = Sizes(spec, least, least + more)
    fitting = [n for n in range(least, least + more + 1) if total % (n * per_device) == 0]
    assert sizes.largest(slots) == max((n for n in fitting if n <= slots), default=None)
    if not fitting:
        with pytest.raises(LaunchError) as error:
            sizes.check()
        others = [n for n in range(1, total + 1) if total % (n * per_device) == 0]
        below, above = [n for n in others if n < least][-1:], [n for n in others if n > least][:1]
        named = " and ".join(map(str, below + above))
        assert str(error.value).endswith((named and f"the nearest that will do: {named}") or "will do")
    else:
        sizes.check()


@given(np=st.integers(1, 6), per_device=st.integers(1, 4), steps=st.none() | st.integers(1, 3))
def test_the_global_batch_stays_that_of_the_start(np: int, per_device: int, steps: int | None) -> None:
    accumulation = "" if steps is None else f", gradient_accumulation_steps: {steps}"
    batch = f"per_device_train_batch_size: {per_device}{accumulation}"
    given_, sets = spec_of(batch), keep_global_batch(spec_of(batch), np)
    total = np * per_device * (steps or 1)
    before = resolve_accumulation(given_.batch, np)
    kept = spec_of(batch, *sets)
    assert resolve_accumulation(kept.batch, np) == before
    one = resolve_accumulation(kept.batch, 1)
    assert one.per_device * one.stages[0][1] == total


@pytest.mark.parametrize(
    ("batch", "sets", "least", "most", "start", "told"),
    [
        (
            "per_device_train_batch_size: 4, global_batch_size: 16",
            [],
            3,
            3,
            None,
            "nearest that will do: 2 and 4",
        ),
        ("per_device_train_batch_size: 4, global_batch_size: 16", [], 2, 4, 3, "-np 3: .*: 2 and 4"),
        (
            "per_device_train_batch_size: 4, global_batch_size: 16",
            [],
            5,
            None,
            None,
            "nearest that will do: 4",
        ),
        ("per_device_train_batch_size: 4, global_batch_size: 16", [], 4, 2, None, "exceeds --max-np 2"),
        ("per_device_train_batch_size: 4, global_batch_size: 16", [], 1, 2, 4, "-np 4: is not between"),
        ("per_device_train_batch_size: 4, global_batch_size: 16", [], 0, 2, None, "at least one rank"),
        (
            "per_device_train_batch_size: 4, global_batch_size: 16",
            ["optimizer.learning_rate_scaling=linear", "optimizer.learning_rate=0.5"],
            4,
            8,
            1,
            "is not between",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    batch: str, sets: list[str], least: int, most: int | None, start: int | None, told: str
) -> None:
    with pytest.raises(LaunchError, match=told) as error:
        Sizes(spec_of(batch, *sets), least, most, start).check()
    assert "None" not in str(error.value)


def test_what_depends_on_the_ranks_keeps_the_job_on_as_many() -> None:
    scaled = spec_of(
        "per_device_train_batch_size: 4, global_batch_size: 16",
        "optimizer.learning_rate_scaling=linear",
        "optimizer.learning_rate=0.5",
    )
    sizes = Sizes(scaled, 1, 4, 2)
    assert [sizes.largest(slots) for slots in (1, 2, 4)] == [None, 2, 2]
    assert "learning rate depend on the ranks: set it to none, and optimizer.learning_rate to 1," in str(
        sizes.skipped(4)
    )
    staged = spec_of(
        "per_device_train_batch_size: 4, gradient_accumulation_steps: [{from_step: 0, steps: 2}]"
    )
    assert keep_global_batch(staged, None) == []
    assert [Sizes(staged, 1, 4, 2).largest(slots) for slots in (1, 2, 4)] == [None, 2, 2]
    by_tokens = spec_of("per_device_train_batch_size: 4, target_tokens_per_update: 512")
    assert [Sizes(by_tokens, 1).largest(slots) for slots in (1, 3, 7)] == [1, 3, 7]


def test_idle_slots_are_explained() -> None:
    sizes = Sizes(spec_of("per_device_train_batch_size: 4, global_batch_size: 16"), 1, 4)
    assert sizes.skipped(2) is None
    assert "1 of 3 slots stay idle: batch.global_batch_size: 16" in str(sizes.skipped(3))
    # More than --max-np are idle by request.
    assert sizes.skipped(9) is None


def test_a_batch_that_follows_from_the_ranks_needs_their_number() -> None:
    with pytest.raises(LaunchError, match=r"batch\.global_batch_size is not given.*or -np"):
        keep_global_batch(spec_of("per_device_train_batch_size: 4"), None)
