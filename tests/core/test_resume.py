"""Going on from a checkpoint without a framework: the loop and its files, around updates that do nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.checkpoints.state import STATE_FILE, load_state
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.data import Batch, Dataset, Window
from hvdtrain.core.data.store import fingerprint_with
from hvdtrain.core.errors import CheckpointError, TrainingError
from hvdtrain.core.families.initializers import Normal
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import make_plan
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import METRICS_FILE, read_metrics
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.training import BaseTrainer
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from tests.jobs.runs import TINY, small_corpus

# Counted from 0: what these bring is not finite.
BAD_WINDOWS = {1, 6}
# In these no rank has anything to predict.
EMPTY_WINDOWS = {2, 8}
WEIGHTS = (Weight("w", (2, 3), True, Normal(0.02)),)
FAMILY = SimpleNamespace(
    weights=lambda model: WEIGHTS,
    untrained=lambda model: (),
    hf_config=lambda model: {},
    activation_bytes=lambda *shapes: 0,
    product_elements=lambda model: 0,
    flops=lambda *sizes: 0,
)


class Held:
    """A model or an optimizer whose arrays are what they were set to."""

    def __init__(self, *names: str) -> None:
        self.arrays = {name: np.zeros((2, 3)) for name in names}
        self.updates = 0

    def read(self) -> dict[str, np.ndarray]:
        return self.arrays

    def write(self, arrays: dict[str, np.ndarray], updates: int = 0) -> None:
        self.arrays, self.updates = arrays, updates


class Trainer(BaseTrainer):
    """One rank whose updates are applied or skipped by a script."""

    def _build(self) -> None:
        self._model, self._optimizer = Held("w"), Held("w.exp_avg", "w.exp_avg_sq")
        self._reducer = SimpleNamespace(read=lambda: [{}], write=lambda states: None, wire_bytes=0)
        self.numbers: list[int] = []

    def _windows(self) -> Iterator[Window]:
        for number, window in enumerate(super()._windows(), self.windows):
            yield dataclasses.replace(window, micro_batches=()) if number in EMPTY_WINDOWS else window

    def update(
        self,
        window: Window,
        divisor: float,
        next_weight: float,
        learning_rate: float,
        update: int,
        loss_scale: float,
    ) -> UpdateResult:
        self.numbers.append(update)
        assert divisor > 0
        return UpdateResult(divisor, 1.0, self.windows not in BAD_WINDOWS, next_weight, window.tokens)

    def local_update(
        self, window: Window, divisor: float, learning_rate: float, update: int, loss_scale: float
    ) -> UpdateResult:
        return self.update(window, divisor, 0.0, learning_rate, update, loss_scale)

    def find_nonfinite(self, window: Window, divisor: float, loss_scale: float) -> np.ndarray:
        return np.array([False, True])

    def exchange(self, policy: Policy) -> None:
        pass

    def start_exchange(self, policy: Policy) -> None:
        pass

    def finish_exchange(self) -> None:
        pass

    def loss_sum(self, batch: Batch) -> float:
        return batch.weight

    def sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        return values

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        return values


def train(directory: Path, spec: JobSpec, dataset: Dataset, resume: Path | None = None) -> Trainer:
    plan = make_plan(spec, WEIGHTS, size=1, threads=1, train_tokens=dataset.train.costs, validation_samples=0)
    world = World(0, 1, 0, 1, 1)
    family: Any = FAMILY
    trainer = Trainer(spec, plan, world, dataset, family, directory, resume)
    trainer.train()
    return trainer


def skipped(directory: Path) -> list[tuple[int, int]]:
    return [(line["skipped_updates"], line["empty_updates"]) for line in read_metrics(directory)[0]]


# A common update that is skipped does not count, and a rank's own does: it is one of its period's.
@pytest.mark.parametrize(
    ("compression", "whole", "rest", "numbers"),
    [
        (
            "{type: none}",
            [(0, 0), (2, 1), (2, 1), (2, 1), (3, 1), (4, 2), (4, 2), (4, 2)],
            [(3, 1), (4, 2), (4, 2), (4, 2)],
            # The seventh window is bad, the ninth is empty.
            [5, 5, 6, 7, 8],
        ),
        (
            "{type: local_sgd, sync_every: 2}",
            [(1, 0), (2, 1), (2, 1), (3, 1)],
            [(2, 1), (3, 1)],
            [3, 4, 5, 5],
        ),
    ],
)
def test_skips_are_counted_on_and_so_are_the_optimizers_updates(
    tmp_path: Path,
    compression: str,
    whole: list[tuple[int, int]],
    rest: list[tuple[int, int]],
    numbers: list[int],
) -> None:
    sets = [f"compression={compression}", "max_steps=8", "checkpointing.save_steps=4"]
    batch = "batch.per_device_train_batch_size=2"
    spec = load_spec("bert", [*TINY, *small_corpus(tmp_path), batch, "model.dtype=float64", *sets])
    dataset = prepare_data(spec, print)
    train(tmp_path / "whole", spec, dataset)
    assert skipped(tmp_path / "whole") == whole
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    position = load_state(checkpoint).position
    assert (position.skipped_updates, position.empty_updates) == (2, 1)
    found = train(tmp_path / "rest", spec, dataset, checkpoint)
    assert skipped(tmp_path / "rest") == rest
    assert found.numbers == numbers
    # One that was saved before skips were.
    record = json.loads((checkpoint / STATE_FILE).read_text())
    del record["skipped_updates"], record["empty_updates"]
    (checkpoint / STATE_FILE).write_text(json.dumps(record))
    train(tmp_path / "older", spec, dataset, checkpoint)
    assert skipped(tmp_path / "older") == [(count - 2, empty - 1) for count, empty in rest]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (set(), "50 updates in a row after step 0 had nothing to predict on any rank"),
        (
            set(range(1, 100, 2)),
            r"50 updates in a row after step 0 had a gradient norm of .*; 25 of them had nothing to predict",
        ),
    ],
)
def test_updates_that_are_never_applied_end_the_run_by_their_reason_and_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: set[int], told: str
) -> None:
    monkeypatch.setattr(f"{__name__}.BAD_WINDOWS", bad)
    monkeypatch.setattr(f"{__name__}.EMPTY_WINDOWS", set(range(100)) - bad)
    sets = ["batch.per_device_train_batch_size=2", "model.dtype=float64", "max_steps=8"]
    spec = load_spec("bert", [*TINY, *small_corpus(tmp_path), *sets])
    with pytest.raises(TrainingError, match=told):
        train(tmp_path / "run", spec, prepare_data(spec, print))
    text = (tmp_path / "run" / METRICS_FILE).read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["skipped_updates"] for line in lines] == [*range(1, 51)]
    assert [line["empty_updates"] for line in lines] == [len(set(range(n)) - bad) for n in range(1, 51)]
    assert {line["step"] for line in lines} == {1}
    assert np.all(np.diff([line["samples_consumed"] for line in lines]) > 0)
    assert not any("loss" in line for line in lines)


def test_a_checkpoint_of_the_same_tokens_goes_on_whatever_its_tokenizer_file_looks_like(
    tmp_path: Path,
) -> None:
    sets = ["max_steps=8", "checkpointing.save_steps=4", "batch.per_device_train_batch_size=2"]
    spec = load_spec("bert", [*TINY, *small_corpus(tmp_path), "model.dtype=float64", *sets])
    dataset = prepare_data(spec, print)
    train(tmp_path / "whole", spec, dataset)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    # An earlier version wrote null for false, and its fingerprint covers the file.
    file = checkpoint / "tokenizer.json"
    file.write_text(file.read_text().replace('"strip_accents": false', '"strip_accents": null'))
    record = json.loads((checkpoint / STATE_FILE).read_text())
    split, seed, corpus = spec.data.validation_split, spec.seed, dataset.corpus
    older = fingerprint_with(corpus, file, split, seed)
    assert older != dataset.fingerprint == fingerprint_with(corpus, corpus.tokenizer_path, split, seed)
    record["order"] = record["order"].replace(dataset.fingerprint, older)
    (checkpoint / STATE_FILE).write_text(json.dumps(record))
    assert train(tmp_path / "rest", spec, dataset, checkpoint).step == 8
    record["order"] = record["order"].replace(older, "0" * 32)
    (checkpoint / STATE_FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="another seed or other data"):
        train(tmp_path / "other", spec, dataset, checkpoint)
