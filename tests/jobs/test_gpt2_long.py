"""GPT-2 at length: 100 updates on 1, 2 and 4 ranks, every cut of a batch, every policy and precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.jobs.runs import FRAMEWORKS, TINY_GPT2, train_all
from tests.jobs.test_gpt2 import losses
from tests.jobs.test_policies import POLICIES

pytestmark = pytest.mark.slow

RANKS = (1, 2, 4)
# Global batches of 8 rows: 1 x 8, 2 x 4, 4 x 2 and 8 x 1 (ranks x accumulation).
LONG = [*TINY_GPT2, "max_steps=100", "schedule.warmup_steps=10", "batch.per_device_train_batch_size=1"]
SHORT = [*TINY_GPT2, "max_steps=20"]
SINGLE = [*LONG, "model.dtype=float32", "max_steps=50"]
PLAIN = [*TINY_GPT2, "batch.global_batch_size=4", "max_steps=20"]
PERIODIC = {
    "local_sgd": "{type: local_sgd, sync_every: 2}",
    "overlapped": "{type: local_sgd, sync_every: 2, overlap: true}",
    "diloco": "{type: diloco, sync_every: 5}",
    "bf16": "{type: bf16}",
    "adasum": "{type: adasum}",
    "none": "{type: none}",
}
# The same groups under GPT-2's names.
NAMES = {"*embeddings*": "*wte*", "*LayerNorm*": "*ln_*"}
FOR_GPT2 = POLICIES["by name"]
for theirs, own in NAMES.items():
    FOR_GPT2 = FOR_GPT2.replace(theirs, own)
# A key's bias changes no score, so that rounding alone decides its gradient's sign.
SIGNS = "[{match: '*c_attn.bias', type: none}, {type: sign}]"
EVERY = {
    name: [*PLAIN, f"compression={policy}"]
    for name, policy in (POLICIES | PERIODIC | {"by name": FOR_GPT2, "sign": SIGNS}).items()
}
MIXED = {
    f"{precision} {name}": [*settings, "model.dtype=float32", f"mixed_precision={precision}", "max_steps=10"]
    for precision in ("bf16", "fp16")
    for name, settings in EVERY.items()
}
Runs = dict[tuple[str, int], dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root, found = tmp_path_factory.mktemp("gpt2-long"), {}
    for framework in FRAMEWORKS:
        for ranks in (*RANKS, 8):
            scenarios = {"short": SHORT} | ({} if ranks == 8 else {"long": LONG, "single": SINGLE})
            place = root / f"{framework}-{ranks}"
            found[framework, ranks] = train_all(place, framework, ranks, scenarios, spec="gpt2")
    return found


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    root, every = tmp_path_factory.mktemp("gpt2-policies"), EVERY | MIXED
    found: dict[str, dict[str, Path]] = {}
    for framework in FRAMEWORKS:
        found[framework] = {}
        # TensorFlow traces each: all of them in one launch take longer than a launch may.
        for part in range(6):
            scenarios = dict(list(every.items())[part::6])
            place = root / f"{framework}-{part}"
            found[framework] |= train_all(place, framework, 2, scenarios, spec="gpt2")
    return found


@pytest.mark.parametrize("ranks", RANKS)
def test_both_frameworks_follow_one_trajectory(runs: Runs, ranks: int) -> None:
    ours, theirs = (runs[framework, ranks] for framework in FRAMEWORKS)
    assert len(losses(ours["long"])) == 100
    np.testing.assert_allclose(losses(theirs["long"]), losses(ours["long"]), rtol=1e-9)
    np.testing.assert_allclose(losses(theirs["single"]), losses(ours["single"]), rtol=1e-3)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_cut_of_a_global_batch_gives_one_curve(runs: Runs, framework: str) -> None:
    whole = losses(runs[framework, 1]["short"])
    assert len(whole) == 20
    for ranks in (2, 4, 8):
        np.testing.assert_allclose(losses(runs[framework, ranks]["short"]), whole, rtol=1e-10)


@pytest.mark.parametrize("name", [*EVERY, *MIXED])
def test_every_policy_and_precision_follows_one_curve(
    policies: dict[str, dict[str, Path]], name: str
) -> None:
    ours, theirs = (losses(policies[framework][name]) for framework in FRAMEWORKS)
    assert len(ours) and np.isfinite(ours).all()
    np.testing.assert_allclose(theirs, ours, rtol=1e-9 if name in EVERY else 1e-2)
