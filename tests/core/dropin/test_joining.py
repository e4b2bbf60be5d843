"""Which compression lets a rank leave before the others."""

from __future__ import annotations

from typing import Any

import pytest

from hvdtrain.core.dropin import check_join, make_settings
from hvdtrain.core.errors import SpecError


def check(compression: Any, applied: int = 1) -> None:
    check_join("join()", make_settings("DistributedOptimizer", compression=compression), applied)


@pytest.mark.parametrize("compression", ["none", "fp16", "bf16", [{"match": "a*", "type": "fp16"}]])
def test_zeros_may_stand_for_a_rank(compression: Any) -> None:
    check(compression)


@pytest.mark.parametrize(
    "compression",
    [
        "int8",
        "sign",
        "topk",
        "randomk",
        "powersgd",
        "adasum",
        [{"match": "a*", "type": "int8"}, {"type": "fp16"}],
    ],
)
def test_what_needs_every_rank_is_refused_by_name(compression: Any) -> None:
    name = compression if isinstance(compression, str) else "int8"
    with pytest.raises(SpecError, match=rf"join\(\): compression {name} .*drop_last=True"):
        check(compression)


def test_the_update_that_finds_the_scale_of_16_bits_needs_every_rank() -> None:
    with pytest.raises(SpecError, match="fp16 needs all ranks in update 1"):
        check("fp16", applied=0)


def test_what_a_rank_owns_needs_that_rank() -> None:
    settings = make_settings("DistributedOptimizer", zero_stage=1)
    with pytest.raises(SpecError, match=r"join\(\): zero_stage 1: .*drop_last=True"):
        check_join("join()", settings, 1)
