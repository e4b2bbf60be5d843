"""A run that goes on from framework to framework, on 2, 2, 4 and 1 ranks, as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hvdtrain.core.run.metrics import read_metrics
from tests.jobs.runs import TINY, TINY_GPT2, small_corpus, train_all
from tests.jobs.test_resnet import SYNC

STAGES = (("torch", 2), ("tensorflow", 2), ("torch", 4), ("tensorflow", 1))
# Updates of each stage, and rows of all ranks in an update.
UPDATES, ROWS = 3, 8
LENGTH = [f"max_steps={UPDATES * len(STAGES)}", f"checkpointing.save_steps={UPDATES}"]
BATCH = [f"batch={{per_device_train_batch_size: 2, global_batch_size: {ROWS}}}"]
MIXED = [
    "model.dtype=float32",
    "mixed_precision=fp16",
    # It grows in the first stage and in the third.
    "loss_scale={initial: 1024, growth_interval: 4}",
    "compression={type: powersgd, start_powerSGD_iter: 2}",
]
# Convolutions round otherwise in each framework: at the packaged rate, losses in float16 part by 0.2 %
# within nine updates.
RATES = {"resnet": ["optimizer.learning_rate=0.0003"]}
Scenario = Callable[[Path, int], list[str]]
# The overrides by the folder of a corpus and the number of ranks. Statistics of batch norm are those of a
# micro-batch on all ranks, which has all rows therefore.
SCENARIOS: dict[str, Scenario] = {
    "bert": lambda root, ranks: [*TINY, "model.dtype=float64", *small_corpus(root), *BATCH],
    "gpt2": lambda root, ranks: [*TINY_GPT2, *BATCH],
    "resnet": lambda root, ranks: [*SYNC, f"batch.per_device_train_batch_size={ROWS // ranks}"],
}
Curves = dict[str, list[dict[str, float]]]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Curves]:
    """The log of every scenario in each stage; the first is the uninterrupted run."""
    root, found = tmp_path_factory.mktemp("chains"), []
    places: dict[str, Path] = {}
    for i, (framework, ranks) in enumerate(STAGES):
        sets = {name: [*make(root, ranks), *LENGTH] for name, make in SCENARIOS.items()}
        sets |= {f"{name}, fp16": [*each, *MIXED, *RATES.get(name, ())] for name, each in sets.items()}
        specs = {name: name.partition(",")[0] for name in sets}
        runs = train_all(root / str(i), framework, ranks, sets, places, spec=specs)
        places = {name: run / f"checkpoint-{UPDATES * (i + 1)}" for name, run in runs.items()}
        found.append({name: read_metrics(run)[0] for name, run in runs.items()})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", ", fp16"])
@pytest.mark.parametrize("family", SCENARIOS)
def test_the_curve_is_the_uninterrupted_one(stages: list[Curves], family: str, kind: str) -> None:
    whole, *others = (stage[family + kind] for stage in stages)
    for i, lines in enumerate(others, 1):
        expected = whole[UPDATES * i :]
        assert [line["step"] for line in lines] == [line["step"] for line in expected]
        for name in ("samples_consumed", "loss_scale", "learning_rate"):
            assert [line[name] for line in lines] == [line[name] for line in expected], name
        losses, told = ([line["loss"] for line in each] for each in (expected, lines))
        assert told == pytest.approx(losses, rel=1e-4 if kind else 1e-9)
    scales = {line["loss_scale"] for line in whole}
    assert (len(scales) > 2) == bool(kind)
