"""Which compression cannot stand beside a loss scale that changes."""

from __future__ import annotations

import pytest

from hvdtrain.core.compression import Fp16, NoCompression, Sign, TopK
from hvdtrain.core.compression.numpy_ops import Ops
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.dropin import keeps_residuals, residuals_are_scaled
from tests.conformance.cases import BUCKETS


@pytest.mark.parametrize(
    ("policy", "keeps"),
    [
        (NoCompression(), False),
        # Its clips differ by rank as residuals do, but nothing of a gradient is in them.
        (Fp16(), False),
        (Sign(), True),
        (Sign(use_error_feedback=False), False),
        (TopK(), True),
        (TopK(use_error_feedback=False), False),
    ],
)
def test_residuals_are_what_differs_by_rank_and_is_no_count(policy: Policy, keeps: bool) -> None:
    bucket = BUCKETS["mixed"]
    state = policy.init(Ops(2, rank=0, seed=0), bucket, "float32")
    assert keeps_residuals([(NoCompression(), {}), (policy, state)]) is keeps


def test_the_refusal_says_what_to_use() -> None:
    told = str(residuals_are_scaled("GradScaler", "bfloat16"))
    assert "because GradScaler changes the loss scale. Use bfloat16, or none, fp16, or" in told
