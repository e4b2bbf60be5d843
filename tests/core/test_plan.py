"""The plan: the arithmetic of a run, before anything starts."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st

from hvdtrain.core.data import TextFacts
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.initializers import ONES, ZEROS, Normal
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import Plan, make_plan
from hvdtrain.core.plan.table import print_plan
from hvdtrain.core.spec.job_spec import parse_spec
from hvdtrain.core.spec.sections import BatchSpec
from hvdtrain.core.update.accumulation import Accumulation, BatchSizes, resolve_batch

COUNTS = st.integers(1, 64)
WEIGHTS = (
    Weight("embedding", (100, 8), True, Normal(0.02)),
    Weight("norm", (8,), False, ONES),
    Weight("kernel", (8, 8), True, Normal(0.02)),
    Weight("bias", (8,), False, ZEROS),
)
ELEMENTS, DECAYED = 880, 864
SPEC: dict[str, Any] = {
    "model": {},
    "data": {"corpus": "python-docs"},
    "batch": {"per_device_train_batch_size": 4},
    "max_steps": 100,
}


def plan(*overrides: str, size: int = 2, train_samples: int = 1000, validation_samples: int = 50) -> Plan:
    return make_plan(
        parse_spec(yaml.safe_dump(SPEC), overrides),
        WEIGHTS,
        size=size,
        threads=3,
        train_tokens=np.full(train_samples, 128),
        validation_samples=validation_samples,
    )


@given(COUNTS, COUNTS, COUNTS)
def test_any_two_numbers_of_the_batch_give_the_third(size: int, per_device: int, accumulation: int) -> None:
    total = size * per_device * accumulation
    given_two: list[dict[str, int]] = [
        {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": accumulation},
        {"per_device_train_batch_size": per_device, "global_batch_size": total},
        {"gradient_accumulation_steps": accumulation, "global_batch_size": total},
    ]
    expected = BatchSizes(per_device, accumulation, total)
    for numbers in [*given_two, given_two[0] | given_two[1]]:
        assert resolve_batch(BatchSpec(**numbers), size) == expected


@given(COUNTS, COUNTS)
def test_the_per_device_batch_alone_means_no_accumulation(size: int, per_device: int) -> None:
    spec = BatchSpec(per_device_train_batch_size=per_device)
    assert resolve_batch(spec, size) == BatchSizes(per_device, 1, size * per_device)


@given(COUNTS, COUNTS, st.integers(1, 5000))
def test_a_global_batch_that_does_not_divide_is_refused(size: int, share: int, total: int) -> None:
    assume(total % (size * share))
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        with pytest.raises(SpecError) as caught:
            resolve_batch(BatchSpec(**{name: share, "global_batch_size": total}), size)
        for told in (
            "batch.global_batch_size",
            str(total),
            f"{size} ranks x {name} {share} = {size * share}",
        ):
            assert told in str(caught.value)


@given(COUNTS, COUNTS, COUNTS, st.integers(1, 5000))
def test_three_numbers_that_contradict_each_other_are_refused(
    size: int, per_device: int, accumulation: int, total: int
) -> None:
    assume(total != size * per_device * accumulation)
    spec = BatchSpec(
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        global_batch_size=total,
    )
    with pytest.raises(
        SpecError, match=f"= {size * per_device * accumulation}, but global_batch_size is {total}"
    ):
        resolve_batch(spec, size)


def test_epochs_become_updates_that_use_every_sample() -> None:
    found = plan("max_steps=null", "num_train_epochs=2.5", train_samples=1001)
    assert found.batch.global_batch_size == 8
    assert found.updates_per_epoch == 126  # 125 full updates and one of a single sample
    assert found.max_steps == 315


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 0),
        (["schedule.warmup_steps=30"], 30),
        (["schedule.warmup_ratio=0.1"], 10),
        (["schedule.warmup_ratio=0.101"], 11),
        (["schedule.warmup_steps=100"], 100),
        (["schedule.warmup_steps=30", "schedule.warmup_ratio=0.1"], 30),
    ],
)
def test_warm_up_in_updates_or_as_a_share_rounded_up(overrides: list[str], expected: int) -> None:
    assert plan(*overrides).warmup_steps == expected


def test_a_warm_up_longer_than_the_run_is_refused() -> None:
    with pytest.raises(SpecError, match=r"schedule\.warmup_steps: 101 exceeds the run's 100 updates"):
        plan("schedule.warmup_steps=101")


def test_a_corpus_without_training_samples_is_refused() -> None:
    with pytest.raises(SpecError, match="the training split is empty"):
        plan(train_samples=0)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_the_learning_rate_is_scaled_with_the_world_when_asked_for(scaling: str, factor: float) -> None:
    found = plan(
        f"optimizer.learning_rate_scaling={scaling}", "optimizer.learning_rate=0.001", size=4
    ).learning_rate
    assert math.isclose(found, 0.001 * factor, rel_tol=1e-15)


@pytest.mark.parametrize(
    ("dtype", "compression", "bytes_each"),
    [("float32", "none", 4), ("float64", "none", 8), ("float32", "fp16", 2), ("float64", "fp16", 2)],
)
def test_bytes_on_the_wire_follow_the_policy_and_not_the_ranks_buckets_or_accumulation(
    dtype: str, compression: str, bytes_each: int
) -> None:
    settings = [f"model.dtype={dtype}", f"compression.type={compression}"]
    for more in ([], ["communication.bucket_cap_mb=0.0001"], ["batch.gradient_accumulation_steps=4"]):
        for size in (1, 2, 8):
            assert plan(*settings, *more, size=size).wire_bytes_per_update == ELEMENTS * bytes_each


@pytest.mark.parametrize("type_", ["local_sgd", "diloco"])
def test_weights_are_exchanged_once_a_period(type_: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(f"compression={{type: {type_}, sync_every: 8}}", "evaluation.eval_steps=16")
    assert (found.wire_bytes_per_update, found.sync_every) == (ELEMENTS * 4, 8)
    assert plan().sync_every == 1
    print_plan(dataclasses.replace(found, wire_bytes_per_update=8 * 2**20), "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "1.00 MiB" in shown
    assert "8.00 MiB every 8 updates" in shown
    assert found.notes == ()


def test_an_overlap_without_anything_to_overlap_is_noted() -> None:
    overlapped = "compression={type: local_sgd, sync_every: 8, overlap: true}"
    (note,) = plan(overlapped, "checkpointing.save_steps=8", "evaluation.eval_steps=16").notes
    assert note.startswith("compression.overlap: checkpointing.save_steps 8 is compression.sync_every, so ")
    assert plan(overlapped, "checkpointing.save_steps=16").notes == ()
    assert plan("compression={type: local_sgd, sync_every: 8}", "checkpointing.save_steps=8").notes == ()


@pytest.mark.parametrize("field", ["evaluation.eval_steps", "checkpointing.save_steps"])
def test_ranks_are_looked_at_only_when_they_agree(field: str) -> None:
    periodic = "compression={type: local_sgd, sync_every: 8}"
    with pytest.raises(SpecError, match=rf"{field}: 20 is not a multiple of compression\.sync_every 8"):
        plan(periodic, f"{field}=20")
    assert plan(periodic, f"{field}=24").max_steps == 100


def test_adasum_on_three_ranks_is_refused() -> None:
    with pytest.raises(SpecError, match="adasum combines ranks in pairs"):
        plan("compression.type=adasum", size=3)
    assert plan("compression.type=adasum", size=4).wire_bytes_per_update == ELEMENTS * 4


@pytest.mark.parametrize(("optimizer", "moments"), [("adamw", 2), ("sgd", 1)])
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float64", 8)])
def test_memory_of_a_rank(optimizer: str, moments: int, dtype: str, itemsize: int) -> None:
    memory = plan(f"optimizer.type={optimizer}", f"model.dtype={dtype}").memory
    weights = ELEMENTS * itemsize
    assert (memory.weights, memory.gradients, memory.optimizer) == (weights, weights, weights * moments)
    assert memory.total == weights * (2 + moments)
    assert memory.compression == 0


@pytest.mark.parametrize(
    ("compression", "kept"),
    [
        ("{type: sign}", 4 * ELEMENTS),
        ("{type: sign, use_error_feedback: false}", 0),
        ("{type: topk, momentum: 0.9}", 8 * ELEMENTS),
        ("{type: fp16}", 4 + 8),
        # The embedding (100, 8) alone is worth a rank of 1: its residual, and Q of 8 elements.
        ("{type: powersgd, min_compression_rate: 5.0}", 4 * (800 + 8)),
    ],
)
def test_memory_counts_what_compression_keeps(compression: str, kept: int) -> None:
    found = plan(f"compression={compression}").memory
    assert found.compression == kept
    assert found.total == found.weights + found.gradients + found.optimizer + kept


# What differs by rank is written at once, however many ranks there are.
@pytest.mark.parametrize(
    ("compression", "copies"),
    [
        ("{type: none}", 3),
        ("{type: sign}", 3),
        ("{type: local_sgd, sync_every: 2, start_localSGD_iter: 4}", 3),
        ("{type: local_sgd, sync_every: 2}", 1),
        ("{type: diloco, sync_every: 2}", 1),
    ],
)
def test_the_copy_of_a_checkpoint_does_not_grow_with_the_ranks(compression: str, copies: int) -> None:
    found = plan(f"compression={compression}", "checkpointing.save_steps=2", size=8).memory
    assert found.checkpoint == copies * 4 * ELEMENTS


def test_memory_of_a_forward_pass_is_the_familys(capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def activation_bytes(model: Any, rows: int, length: int, predictions: int, itemsize: int) -> int:
        asked.append((rows, length, predictions, itemsize))
        return 3 * 2**20

    family = SimpleNamespace(
        activation_bytes=activation_bytes, product_elements=lambda model: 500, flops=lambda *sizes: 1000
    )
    bare, whole, mixed = (
        make_plan(
            parse_spec(yaml.safe_dump(SPEC), overrides),
            WEIGHTS,
            size=2,
            threads=3,
            train_tokens=np.full(1000, 128),
            validation_samples=50,
            family=found,
            cpu_flags={"avx2"},
        )
        for overrides, found in (([], None), ([], family), (["mixed_precision=bf16"], family))
    )
    assert asked == [(4, 128, 19, 4), (4, 128, 19, 2)]
    assert (bare.memory.activations, bare.memory.low_precision_weights) == (None, 0)
    assert whole.memory.total == bare.memory.total + 3 * 2**20
    assert mixed.memory.total == whole.memory.total + 1000
    assert (whole.compute_dtype, mixed.compute_dtype) == ("float32", "bfloat16")
    assert (whole.notes, len(mixed.notes)) == ((), 1)
    print_plan(mixed, "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "activations 3.00 MiB" in shown
    assert "matrix products bfloat16" in shown
    assert "note: mixed_precision: bf16: this CPU has neither amx_bf16 nor avx512_bf16" in shown


def peaks(tied: bool, *overrides: str) -> tuple[Plan, int, int]:
    """A plan with activations of 3 MiB, and its temporary arrays in PyTorch and in TensorFlow."""
    found = make_plan(
        parse_spec(yaml.safe_dump(SPEC), overrides),
        [dataclasses.replace(w, tied=tied and w.name == "embedding") for w in WEIGHTS],
        size=2,
        threads=3,
        train_tokens=np.full(1000, 128),
        validation_samples=50,
        family=SimpleNamespace(
            activation_bytes=lambda *shapes: 3 * 2**20, flops=lambda *sizes: 1000, LAYERS="num_hidden_layers"
        ),
    )
    for peak in found.memory.peaks.values():
        assert peak.total == found.memory.total + peak.framework + peak.momentary
        assert peak.framework > 0
    return found, *(found.memory.peaks[name].momentary for name in ("torch", "tensorflow"))


# Of 4 rows with 19 predictions each among 30522 tokens: the logits and their gradients.
LOGITS = 4 * 2 * 4 * 19 * 30522


@pytest.mark.parametrize(
    ("tied", "overrides", "torch", "tensorflow"),
    [
        # The largest gradient; all gradients.
        (False, [], 4 * 800 + LOGITS, 4 * ELEMENTS),
        # One of each use, and their sum.
        (True, [], 4 * 3 * 800 + LOGITS, 4 * ELEMENTS),
        (False, ["batch.gradient_accumulation_steps=2"], 4 * 800 + LOGITS, 4 * 2 * ELEMENTS),
        (False, ["zero_stage=1"], 4 * 800 + LOGITS, 4 * (ELEMENTS + ELEMENTS // 2)),
        # Chunks of logits.
        (False, ["model.vocab_size=3000000"], 4 * 800 + 4 * 2 * 2**24, 4 * ELEMENTS),
        (False, ["model.dtype=float64"], 8 * 800 + 2 * LOGITS, 8 * ELEMENTS),
    ],
)
def test_what_an_update_has_for_a_moment(
    tied: bool, overrides: list[str], torch: int, tensorflow: int
) -> None:
    _, *found = peaks(tied, *overrides, "model.num_hidden_layers=6")
    assert found == [torch + 2**19, tensorflow + 12 * 3 * 2**20 // 10]


def test_peaks_are_shown_of_the_framework_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    found, *_ = peaks(tied=False)
    total = found.memory.peaks["torch"].total
    assert found.as_dict()["memory"]["peaks"]["torch"]["total"] == total
    print_plan(found, "")
    both = " ".join(capsys.readouterr().out.split())
    assert f"peak in PyTorch {total / 2**20:.2f} MiB" in both and "peak in TensorFlow" in both
    print_plan(found, "", "tensorflow")
    one = capsys.readouterr().out
    assert "peak in TensorFlow" in one and "peak in PyTorch" not in one
    # Where activations are not predicted, no peak is.
    assert plan().memory.peaks == {}


def test_unknown_text_is_shown_and_much_of_it_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    def with_share(share: float, *overrides: str) -> Plan:
        spec = parse_spec(yaml.safe_dump(SPEC), overrides)
        facts = {"train_tokens": np.full(1000, 128), "validation_samples": 50}
        text = TextFacts(1005, 30522, share, trained=spec.data.tokenizer_file is None)
        return make_plan(spec, WEIGHTS, size=2, threads=3, text=text, **facts)

    much = with_share(0.109)
    print_plan(much, "")
    shown = " ".join(capsys.readouterr().out.split())
    assert "tokenizer 1,005 of 30,522 tokens 10.90% of the text is [UNK]" in shown
    assert "note: data: 10.9% of the text is [UNK], which is lost: give a larger model.vocab_size" in shown
    assert much.as_dict()["text"] == {
        "tokenizer_size": 1005,
        "vocab_size": 30522,
        "unknown_share": 0.109,
        "trained": True,
    }
    (given,) = with_share(0.02, "data.tokenizer_file=a.json").notes
    assert "take a data.tokenizer_file that knows this text" in given
    assert with_share(0.01).notes == ()


def test_a_policy_that_the_run_is_too_short_for_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    late = plan("compression={type: powersgd, start_powerSGD_iter: 100}")
    print_plan(late, "")
    assert (
        "note: compression.type: powersgd would start after the last update, 100" in capsys.readouterr().out
    )
    (post,) = plan("compression={type: local_sgd, start_localSGD_iter: 100}").notes
    assert "local_sgd would start after the last update, 100" in post
    assert plan("compression={type: powersgd, start_powerSGD_iter: 99}").notes == ()
    assert plan("compression={type: fp16}").notes == ()


def test_parameters_are_counted_and_buckets_keep_the_cap_of_the_spec() -> None:
    found = plan("communication.bucket_cap_mb=0.001")  # 1048.576 bytes, 262 elements of float32
    assert (found.parameters, found.decayed_parameters) == (ELEMENTS, DECAYED)
    assert [bucket.size for bucket in found.buckets] == [80, 800]


def test_the_evaluation_batch_is_the_training_batch_unless_given() -> None:
    assert plan().per_device_eval_batch_size == 4
    assert plan("evaluation.per_device_eval_batch_size=7").per_device_eval_batch_size == 7


def test_horovods_cycle_time_is_the_specs_when_given() -> None:
    assert plan("communication.cycle_time_ms=2.5").cycle_time_ms == 2.5
    assert plan().cycle_time_ms > 0


def test_a_plan_is_frozen_and_prints_as_json() -> None:
    found = plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.size = 3  # type: ignore[misc]
    shown = json.loads(json.dumps(found.as_dict()))
    assert set(shown) | {"bucket_compression"} == {field.name for field in dataclasses.fields(Plan)}
    assert {bucket["compression"] for bucket in shown["buckets"]} == {"none"}
    assert shown["memory"]["total"] == found.memory.total
    assert [name for bucket in shown["buckets"] for name in bucket["weights"]] == [
        weight.name for bucket in found.buckets for weight in bucket.weights
    ]


def test_the_table_shows_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan("schedule.warmup_steps=30"), "what it will do")
    shown = capsys.readouterr().out
    for told in ("8 samples", "30 updates", "1000 samples", "880", "864", "3 thread(s)"):
        assert told in shown


STAGES = "batch.gradient_accumulation_steps=[{from_step: 0, steps: 1}, {from_step: 3, steps: 4}]"


def test_stages_are_counted_through_and_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    # Three updates of 8, then of 32: 24 + 30 x 32 = 984 samples, and the last 16.
    found = plan(STAGES, "max_steps=null", "num_train_epochs=1", train_samples=1000)
    assert found.max_steps == found.updates_per_epoch == 34
    assert found.batch == BatchSizes(4, 4, 32)
    print_plan(found, "")
    assert "accumulation steps: 1 (updates 1 to 3), 4 (updates 4 to 34)" in capsys.readouterr().out


def test_a_stage_that_is_not_reached_is_noted_and_not_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    found = plan(STAGES, "max_steps=3")
    assert found.batch == BatchSizes(4, 1, 8)
    print_plan(found, "")
    shown = capsys.readouterr().out
    assert "8 samples " in shown and "x 1 accumulation steps" in shown
    assert "from_step 3 is not reached: the run has 3 updates" in shown
    assert not any("not reached" in note for note in plan(STAGES, "max_steps=4").notes)


def test_a_number_of_tokens_decides_the_batch() -> None:
    found = plan("batch.target_tokens_per_update=1200", "max_steps=null", "num_train_epochs=2")
    assert found.accumulation == Accumulation(2, 4, target_tokens=1200)
    assert found.batch == BatchSizes(4, 2, 10)  # sequences of 128 tokens
    assert (found.updates_per_epoch, found.max_steps) == (100, 200)
