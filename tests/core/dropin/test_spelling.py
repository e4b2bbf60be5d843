"""Horovod's arguments become ours, or are refused with a word."""

from __future__ import annotations

from typing import Any

import pytest

from hvdtrain.core.dropin import Horovod, by_position, settings_of
from hvdtrain.core.errors import SpecError


class _None:
    pass


class _Fp16:
    pass


HOROVOD = Horovod({_None: "none", _Fp16: "fp16"}, {"Average": 0, "Sum": 1, "Adasum": 2}, "everyone")


def spell(spelled: dict[str, Any], **ours: Any) -> Any:
    usual = {"compression": "none", "gradient_accumulation_steps": 1, "average": "mean"}
    return settings_of("Wrapper", HOROVOD, spelled, **(usual | ours))


@pytest.mark.parametrize(
    ("spelled", "ours", "field", "expected"),
    [
        ({}, {}, "average", "mean"),
        ({"op": 0}, {"average": "samples"}, "average", "samples"),
        ({"op": 1}, {}, "average", "sum"),
        ({"op": 2}, {}, "compression.type", "adasum"),
        ({}, {"compression": _Fp16}, "compression.type", "fp16"),
        ({}, {"compression": _None}, "compression.type", "none"),
        ({"backward_passes_per_step": 3}, {}, "average", "ranks"),
        ({"backward_passes_per_step": 3}, {}, "gradient_accumulation_steps", 3),
        (
            {"backward_passes_per_step": 3, "average_aggregated_gradients": True},
            {},
            "average",
            "mean",
        ),
        ({"gradient_predivide_factor": 2.0, "groups": 3, "process_set": "everyone"}, {}, "average", "mean"),
    ],
)
def test_what_has_a_counterpart_is_taken(
    spelled: dict[str, Any], ours: dict[str, Any], field: str, expected: Any
) -> None:
    found = spell(spelled, **ours)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("spelled", "ours", "words"),
    [
        ({"op": 7}, {}, ["op", "Average, Sum, Adasum", "7"]),
        ({"op": 1}, {"average": "samples"}, ["op", "average='samples'", "give one"]),
        ({"op": 2}, {"compression": "int8"}, ["Adasum", "int8"]),
        ({"op": 1, "gradient_predivide_factor": 2.0}, {}, ["gradient_predivide_factor", "Average"]),
        ({"process_set": "some", "op": 2}, {}, ["process_set", "all ranks"]),
        ({}, {"compression": int}, ["compression int", "Compression.fp16"]),
        (
            {"backward_passes_per_step": 2},
            {"gradient_accumulation_steps": 2},
            ["backward_passes_per_step 2", "gradient_accumulation_steps 2"],
        ),
        ({"nesterov": True}, {}, ["nesterov", "unknown"]),
    ],
)
def test_what_has_none_is_refused(spelled: dict[str, Any], ours: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        spell(spelled, **ours)
    assert all(word in str(caught.value) for word in ["Wrapper", *words])


def test_arguments_by_position_are_horovods() -> None:
    names = ("device_dense", "compression", "op")
    assert by_position("Wrapper", names, ["/gpu:0", _Fp16], {"op": 1}) == {
        "device_dense": "/gpu:0",
        "compression": _Fp16,
    }
    for values, named, told in (
        (["", _Fp16, 1, 2], {}, "2 is given by position, behind op"),
        (["", _Fp16], {"compression": "int8"}, "compression is given by position and by name"),
        (["fp16"], {}, "'fp16' is where Horovod takes device_dense"),
        ([_Fp16], {}, "where Horovod takes device_dense"),
    ):
        with pytest.raises(SpecError, match=told):
            by_position("Wrapper", names, values, named)
