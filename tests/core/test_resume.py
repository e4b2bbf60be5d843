"""Going on from a checkpoint without a framework: the loop and its files, around updates that do nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.checkpoints.manifest import MANIFEST_FILE, STATE_FILE
from hvdtrain.core.checkpoints.state import load_state
from hvdtrain.core.compression.protocol import Policy
from hvdtrain.core.data import Batch, Dataset, Split, Window, global_batches
from hvdtrain.core.data.store import fingerprint_with
from hvdtrain.core.errors import CheckpointError, TrainingError
from hvdtrain.core.families.initializers import ZEROS, Normal
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import make_plan
from hvdtrain.core.process.preemption import Preempted
from hvdtrain.core.run import resume as resuming
from hvdtrain.core.run import training
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import METRICS_FILE, read_metrics
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.requests import NO_REQUESTS, Requests
from hvdtrain.core.run.results import UpdateResult
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.start import start
from hvdtrain.core.run.state import RunState
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from tests.core.older_formats import make_format_1
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

    wire_bytes = 0

    def __init__(self, *names: str) -> None:
        self.arrays = {name: np.zeros((2, 3)) for name in names}
        self.updates = 0

    def read(self, weights: Any = None) -> Iterator[tuple[str, np.ndarray]]:
        yield from self.arrays.items()

    def write(self, arrays: Any, updates: int = 0) -> None:
        self.arrays, self.updates = dict(arrays), updates


class Reducer:
    """Keeps no state and sends nothing."""

    wire_bytes = 0

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        yield {}

    def write(self, states: list[dict[str, np.ndarray]]) -> None:
        pass


class Drawing:
    """Random generators whose state is a number."""

    def __init__(self) -> None:
        self.state, self.seeds = np.zeros(1), list[int]()

    def read(self) -> dict[str, np.ndarray]:
        return {"state": self.state.copy()}

    def write(self, states: Any) -> None:
        self.state = states["state"]

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)


class Scripted:
    """An adapter on one rank whose updates are applied or skipped by a script."""

    def __init__(self, window_numbers: dict[int, int]) -> None:
        self.model, self.optimizer, self.reducer = Held("w"), Held("w.exp_avg", "w.exp_avg_sq"), Reducer()
        self.generators = Drawing()
        self.numbers: list[int] = []
        self._window_numbers = window_numbers

    def update(
        self,
        window: Window,
        divisor: float,
        next_weight: float,
        learning_rate: float,
        update: int,
        loss_scale: float,
        requests: Requests = NO_REQUESTS,
    ) -> UpdateResult:
        self.numbers.append(update)
        self.generators.state += 1
        assert divisor > 0
        applied = self._window_numbers[window.samples_consumed] not in BAD_WINDOWS
        return UpdateResult(divisor, 1.0, applied, next_weight, window.tokens, divisor, requests)

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

    def evaluate(self, batch: Batch) -> np.ndarray:
        return np.array([batch.weight, batch.weight])

    def examine(self, batch: Batch) -> float:
        return batch.weight

    def unused(self, batch: Batch) -> list[str]:
        return []


class Emptied:
    """A split whose samples have nothing to predict in some windows."""

    def __init__(self, split: Split, windows: dict[tuple[int, int], int]) -> None:
        self.costs, self._split, self._windows = split.costs, split, windows

    def __len__(self) -> int:
        return len(self._split)

    def collate(self, indices: np.ndarray, epoch: int, rows: int) -> Batch:
        batch = self._split.collate(indices, epoch, rows)
        window = self._windows[epoch, int(indices[0])]
        return dataclasses.replace(batch, weight=0.0) if window in EMPTY_WINDOWS else batch


def train(
    directory: Path,
    spec: JobSpec,
    dataset: Dataset,
    resume: Path | None = None,
    allow_changes: Collection[str] = (),
) -> tuple[RunState, list[int]]:
    """Where a run stands at its end, and the numbers of the updates it tried."""
    plan = make_plan(spec, WEIGHTS, size=1, threads=1, train_tokens=dataset.train.costs, validation_samples=0)
    batches = [*islice(global_batches(spec.seed, dataset.train.costs, plan.accumulation), 110)]
    windows = {(b.epoch, int(index)): number for number, b in enumerate(batches) for index in b.indices}
    dataset = dataclasses.replace(dataset, train=Emptied(dataset.train, windows))
    adapter = Scripted({b.samples_consumed: number for number, b in enumerate(batches)})
    ranks = Ranks(
        World(0, 1, 0, 1, 1),
        lambda values, name: values,
        lambda values, name: values,
        lambda data, name: [data],
    )
    family: Any = FAMILY
    framework: Any = SimpleNamespace(name="torch", versions={})
    run = Run(spec, plan, ranks, dataset, family, WEIGHTS, adapter, directory, framework)
    return training.train(run, start(run, resume, allow_changes)).state, adapter.numbers


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
    state = load_state(checkpoint).record.run
    assert (state.skipped_updates, state.empty_updates) == (2, 1)
    _, found = train(tmp_path / "rest", spec, dataset, checkpoint)
    assert skipped(tmp_path / "rest") == rest
    assert found == numbers
    # One that was saved before skips were, and before there were manifests.
    make_format_1(checkpoint)
    record = json.loads((checkpoint / STATE_FILE).read_text())
    del record["skipped_updates"], record["empty_updates"]
    (checkpoint / STATE_FILE).write_text(json.dumps(record))
    train(tmp_path / "older", spec, dataset, checkpoint)
    assert skipped(tmp_path / "older") == [(count - 2, empty - 1) for count, empty in rest]


LOCAL_STOPS = ("local_updates", [(4, [False, True]), (6, [True])])


# What is asked at each boundary, and after which step the run stops.
@pytest.mark.parametrize(
    ("compression", "module", "stops"),
    [
        # The second window is not finite and the third is empty: neither is a step, and both are boundaries.
        (
            "{type: none}",
            "joint_updates",
            [(1, [False, False, True]), (2, [True]), (4, [False, False, True])],
        ),
        ("{type: local_sgd, sync_every: 2}", *LOCAL_STOPS),
        ("{type: local_sgd, sync_every: 2, overlap: true}", *LOCAL_STOPS),
    ],
)
def test_ranks_that_are_told_to_stop_save_at_a_boundary_and_go_on_from_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    module: str,
    stops: list[tuple[int, list[bool]]],
) -> None:
    sets = [f"compression={compression}", "max_steps=8", "batch.per_device_train_batch_size=2"]
    spec = load_spec("bert", [*TINY, *small_corpus(tmp_path), "model.dtype=float64", *sets])
    dataset = prepare_data(spec, print)
    train(tmp_path / "whole", spec, dataset)
    resume: Path | None = None
    asked = f"hvdtrain.core.run.{module}.told_to_stop"
    for step, told in stops:
        answers = iter(told)
        monkeypatch.setattr(asked, lambda answers=answers: next(answers))
        with pytest.raises(Preempted):
            train(tmp_path / "run", spec, dataset, resume)
        resume = tmp_path / "run" / f"checkpoint-{step}"
        assert load_state(resume).record.run.step == step
        assert not (tmp_path / "run" / "model").exists()
    monkeypatch.setattr(asked, lambda: False)
    state, _ = train(tmp_path / "run", spec, dataset, resume)
    assert state.step == 8
    assert skipped(tmp_path / "run") == skipped(tmp_path / "whole")


def test_who_is_told_in_the_last_update_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = ["max_steps=1", "batch.per_device_train_batch_size=2", "schedule.warmup_steps=0"]
    spec = load_spec("bert", [*TINY, *small_corpus(tmp_path), "model.dtype=float64", *sets])
    monkeypatch.setattr("hvdtrain.core.run.joint_updates.told_to_stop", lambda: True)
    state, _ = train(tmp_path / "run", spec, prepare_data(spec, print))
    assert state.step == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == {METRICS_FILE, "model"}


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


@pytest.mark.parametrize("held_out", [False, True])
def test_a_checkpoint_of_the_same_tokens_goes_on_whatever_its_tokenizer_file_looks_like(
    tmp_path: Path, held_out: bool
) -> None:
    sets = ["max_steps=8", "checkpointing.save_steps=4", "batch.per_device_train_batch_size=2"]
    if held_out:
        (tmp_path / "held_out.csv").write_text("text\nA text to evaluate on.\n")
        sets += [f"data.validation_files=[{tmp_path}/held_out.csv]", "data.validation_split=null"]
    spec = load_spec("bert", [*TINY, *small_corpus(tmp_path), "model.dtype=float64", *sets])
    dataset = prepare_data(spec, print)
    train(tmp_path / "whole", spec, dataset)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    # An earlier version wrote null for false, and its fingerprint covers the file.
    (checkpoint / MANIFEST_FILE).unlink()
    file = checkpoint / "tokenizer.json"
    file.write_text(file.read_text().replace('"strip_accents": false', '"strip_accents": null'))
    record = json.loads((checkpoint / STATE_FILE).read_text())
    del record["format"]
    corpus = dataset.corpus
    older = fingerprint_with(corpus, file)
    assert older != dataset.fingerprint == fingerprint_with(corpus, corpus.tokenizer_path)
    record["order"] = record["order"].replace(dataset.fingerprint, older)
    (checkpoint / STATE_FILE).write_text(json.dumps(record))
    state, _ = train(tmp_path / "rest", spec, dataset, checkpoint)
    assert state.step == 8
    record["order"] = record["order"].replace(older, "0" * 32)
    (checkpoint / STATE_FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="another seed or other data"):
        train(tmp_path / "other", spec, dataset, checkpoint)


@pytest.mark.parametrize(
    ("kind", "told"), [("sgd", "momentum_buffer"), ("lars", "momentum_buffer"), ("lamb", None)]
)
def test_moments_of_another_optimizer_are_refused(tmp_path: Path, kind: str, told: str | None) -> None:
    sets = ["max_steps=8", "checkpointing.save_steps=4", "batch.per_device_train_batch_size=2"]
    sets = [*TINY, *small_corpus(tmp_path), "model.dtype=float64", *sets]
    spec = load_spec("bert", sets)
    dataset = prepare_data(spec, print)
    train(tmp_path / "whole", spec, dataset)
    other = load_spec("bert", [*sets, f"optimizer.type={kind}"])
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    if told is None:
        # Its moments mean the same as AdamW's.
        allowed = ["optimizer.type"]
        assert train(tmp_path / "rest", other, dataset, checkpoint, allowed)[0].step == 8
        return
    with pytest.raises(
        CheckpointError, match=f"optimizer.type {kind} goes on from {told} .* there is exp_avg and exp_avg_sq"
    ):
        train(tmp_path / "rest", other, dataset, checkpoint)


def test_a_checkpoint_of_another_model_names_what_it_lacks() -> None:
    weights = [Weight("dense/kernel", (3, 2), True, ZEROS)]
    run: Any = SimpleNamespace(weights=weights)
    for shapes, message in (
        ({}, "it has no dense/kernel, which the model has.*model.names"),
        ({"dense/kernel": (2,)}, r"dense/kernel has shape \(2,\) there and \(3, 2\) in the spec"),
    ):
        state: Any = None
        with pytest.raises(CheckpointError, match=message):
            resuming._check(run, Path("checkpoint-2"), state, shapes)
