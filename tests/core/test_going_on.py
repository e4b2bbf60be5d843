"""Jobs without a framework, from their start to their end: what they write, and what they leave untouched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.data import Batch, Window
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.job import train_spec
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.results import TrainingResult, UpdateResult
from hvdtrain.core.run.world import World
from hvdtrain.core.spec.job_spec import JobSpec, load_spec
from tests.core.older_formats import make_format_1
from tests.core.test_lock import hold
from tests.core.test_resume import Drawing
from tests.jobs.runs import TINY, small_corpus

SETS = (
    *TINY,
    "model.dtype=float64",
    "batch={per_device_train_batch_size: 2}",
    "max_steps=6",
    "checkpointing.save_steps=4",
    "logging.progress_bar=false",
)


class Held:
    """A model or an optimizer whose arrays are what they were set to."""

    wire_bytes = 0

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.arrays = {name: np.zeros(shape) for name, shape in shapes.items()}

    def read(self, weights: Any = None) -> Iterator[tuple[str, np.ndarray]]:
        yield from self.arrays.items()

    def write(self, arrays: Any, updates: int = 0) -> None:
        self.arrays |= dict(arrays)


class Counting:
    """An adapter whose updates add 1 to every weight, and whose buckets keep no state."""

    wire_bytes = 0

    def __init__(self, spec: JobSpec, plan: Plan, weights: tuple[Weight, ...], network: Any) -> None:
        self.model = Held({weight.name: weight.shape for weight in weights})
        kinds = {"sgd": ("momentum_buffer",)}.get(spec.optimizer.type, ("exp_avg", "exp_avg_sq"))
        self.optimizer = Held({f"{w.name}.{kind}": w.shape for w in weights for kind in kinds})
        self.reducer, self._buckets = self, len(plan.buckets)
        self.generators = Drawing()

    def read(self) -> Iterator[dict[str, np.ndarray]]:
        yield from ({} for _ in range(self._buckets))

    def update(self, window: Window, divisor: float, next_weight: float, *rest: Any) -> UpdateResult:
        self.model.write({name: array + 1 for name, array in self.model.arrays.items()})
        return UpdateResult(divisor, 1.0, True, next_weight, window.tokens, divisor)

    def evaluate(self, batch: Batch) -> np.ndarray:
        return np.array([batch.weight, batch.weight])


def job(
    output_dir: Path, sets: list[str], resume: Path | None = None, ranks: int = 1, **arguments: Any
) -> TrainingResult:
    """Train on rank 0, of ranks that all do the same."""
    spec = load_spec("bert", sets)
    world = World(0, ranks, 0, ranks, 1)
    joined = Ranks(world, lambda a, name: a, lambda a, name: a, lambda data, name: [data] * ranks)
    framework = Framework("torch", None, None, Counting, None, (), frozenset())  # type: ignore[arg-type]
    return train_spec(framework, joined, spec, output_dir, resume, **arguments)


def content(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Every file, its bytes and when it was written."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(f.relative_to(directory)): (f.read_bytes(), f.stat().st_mtime_ns) for f in files}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("corpus")
    return [*SETS, f"data.cache_dir={root}/cache", *small_corpus(root)]


@pytest.fixture(scope="module")
def whole(sets: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six updates."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    job(directory, sets)
    return directory


def test_a_run_that_has_ended_can_be_made_longer(sets: list[str], tmp_path: Path) -> None:
    whole, constant = tmp_path / "whole", [*sets, "schedule.type=constant_with_warmup"]
    job(whole, constant)
    assert {path.name for path in whole.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    # Its learning rates do not depend on the number of updates.
    longer = job(tmp_path / "out", [*constant, "max_steps=9"], whole / "checkpoint-6")
    assert longer.state.step == 9
    assert [line["step"] for line in read_metrics(tmp_path / "out")[0]] == [7, 8, 9]
    for name in ("checkpoint-8", "checkpoint-9"):
        assert (tmp_path / "out" / name / "state.json").is_file()
    before, after = load_model(whole / "model"), load_model(tmp_path / "out" / "model")
    assert all(np.array_equal(after[name], array + 3) for name, array in before.items())


REFUSED = {
    "model.num_attention_heads=1": ("model.num_attention_heads", 2, 1),
    "model.hidden_act=gelu_new": ("model.hidden_act", "gelu", "gelu_new"),
    "model.layer_norm_eps=1e-5": ("model.layer_norm_eps", 1e-12, 1e-5),
    "model.initializer_range=0.3": ("model.initializer_range", 0.02, 0.3),
    "optimizer.learning_rate=0.5": ("optimizer.learning_rate", 1e-3, 0.5),
    "optimizer.type=lamb": ("optimizer.type", "adamw", "lamb"),
    "schedule.warmup_steps=2": ("schedule.warmup_steps", 4, 2),
    "max_steps=9": ("max_steps", 6, 9),
    "max_grad_norm=null": ("max_grad_norm", 1.0, None),
    "task.mlm_probability=0.3": ("task.mlm_probability", 0.15, 0.3),
    "compression={type: fp16}": ("compression", ANY, ANY),
    "batch.global_batch_size=4": ("batch.global_batch_size", 2, 4),
}
OTHERWISE = {
    "model.num_hidden_layers=1": "it has bert.encoder.layer.1",
    "model.num_hidden_layers=3": "it has no bert.encoder.layer.2",
    "model.hidden_size=16": "has shape",
    "optimizer.type=sgd": "optimizer.type sgd goes on from momentum_buffer",
    "seed=5": "another seed or other data",
}
HARMLESS = (
    "logging.logging_steps=2",
    "checkpointing.save_steps=3",
    "evaluation.eval_steps=3",
    "num_threads=2",
    "communication={bucket_cap_mb: 0.01, cycle_time_ms: 5}",
    "data.prefetch=0",
    "data.cache_dir=OTHER",
    "max_skipped_updates=3",
    "gradient_checkpointing=true",
    "batch={per_device_train_batch_size: 1, global_batch_size: 2}",
)


@pytest.mark.parametrize("change", [*REFUSED, *OTHERWISE])
def test_a_resume_that_is_refused_changes_nothing(whole: Path, sets: list[str], change: str) -> None:
    before = content(whole)
    with pytest.raises(CheckpointError) as refused:
        job(whole, [*sets, change], whole / "checkpoint-4")
    told = str(refused.value)
    if change in REFUSED:
        field, was, now = REFUSED[change]
        values = ("", "") if was is ANY else (f"{json.dumps(was)} and is", f"now {json.dumps(now)}\n")
        assert f"\n  {field} was {values[0]}" in told
        assert values[1] in told
        assert told.count("\n  ") == 1
        assert "add --allow-change and the field's name" in told
    else:
        assert OTHERWISE[change] in told
    assert content(whole) == before


def test_what_is_refused_is_allowed_by_its_name(whole: Path, sets: list[str], tmp_path: Path) -> None:
    changes = ["optimizer.learning_rate=0.5", "model.hidden_act=gelu_new", "max_grad_norm=null"]
    allowed = ["optimizer.learning_rate", "model.hidden_act"]
    with pytest.raises(CheckpointError, match=r"spec:\n  max_grad_norm was 1.0 and is now null\n"):
        job(tmp_path / "out", [*sets, *changes], whole / "checkpoint-4", allow_changes=allowed)
    assert not (tmp_path / "out").exists()
    allowed.append("max_grad_norm")
    job(tmp_path / "out", [*sets, *changes], whole / "checkpoint-4", allow_changes=allowed)


def test_a_run_goes_on_with_what_changes_no_update(whole: Path, sets: list[str], tmp_path: Path) -> None:
    changes = [change.replace("OTHER", str(tmp_path / "cache")) for change in HARMLESS]
    job(tmp_path / "out", [*sets, *changes], whole / "checkpoint-4")
    assert [line["step"] for line in read_metrics(tmp_path / "out")[0]] == [6]


def test_another_global_batch_by_another_number_of_ranks_is_refused(
    whole: Path, sets: list[str], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="global_batch_size was 2 and is now 4"):
        job(tmp_path / "out", sets, whole / "checkpoint-4", ranks=2)
    # Of a format 1 away from its run there is the model alone to be compared with.
    moved = Path(shutil.copytree(whole / "checkpoint-4", tmp_path / "checkpoint-4"))
    make_format_1(moved)
    job(tmp_path / "out", sets, moved, ranks=2)
    with pytest.raises(CheckpointError, match=r"model.hidden_act was \"gelu\" and is now \"gelu_new\""):
        job(tmp_path / "else", [*sets, "model.hidden_act=gelu_new"], moved)


def test_the_global_batch_is_compared_with_that_of_the_checkpoint_wherever_it_lies(
    sets: list[str], tmp_path: Path
) -> None:
    run, larger = tmp_path / "run", [*sets, "batch={per_device_train_batch_size: 4}"]
    job(run, sets)
    moved = Path(shutil.copytree(run / "checkpoint-4", tmp_path / "checkpoint-4"))
    with pytest.raises(CheckpointError, match="global_batch_size was 2 and is now 4"):
        job(tmp_path / "out", larger, moved)
    # The run's plan is of the larger batch now, and the earlier checkpoint still is not.
    job(
        run,
        [*larger, "max_steps=8"],
        run / "checkpoint-6",
        allow_changes=["batch.global_batch_size", "max_steps"],
    )
    with pytest.raises(CheckpointError, match="global_batch_size was 2 and is now 4"):
        job(tmp_path / "out", larger, run / "checkpoint-4")
    with pytest.raises(CheckpointError, match="global_batch_size was 4 and is now 2"):
        job(tmp_path / "out", [*sets, "max_steps=8"], run / "checkpoint-8")
    job(tmp_path / "out", sets, run / "checkpoint-4")


@pytest.mark.parametrize("max_steps", [6, 5])
def test_with_nothing_to_do_everything_stays_as_it_is(
    whole: Path, sets: list[str], max_steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(whole)
    changes = [*sets, f"max_steps={max_steps}"]
    result = job(whole, changes, whole / "checkpoint-6", allow_changes=["max_steps"])
    assert (result.state.step, result.model_dir) == (6, whole / "model")
    assert content(whole) == before
    told = capsys.readouterr().out
    assert "nothing to do" in told
    assert f"is of update 6, and max_steps is {max_steps}" in told
    assert "nan" not in told


def test_weights_that_are_refused_after_the_data_is_prepared_leave_nothing(
    whole: Path, sets: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "pretrained"
    folder.mkdir()
    for file in (whole / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-8])
    with pytest.raises(CheckpointError, match=r"model.init_from .*: cannot be read"):
        job(tmp_path / "out", [*sets, f"model.init_from={folder}"])
    assert not (tmp_path / "out").exists()
    before = content(whole)
    with pytest.raises(CheckpointError, match=r"model.init_from .*: cannot be read"):
        job(whole, [*sets, f"model.init_from={folder}"], overwrite=True)
    assert content(whole) == before


def test_a_job_beside_another_changes_nothing(whole: Path, sets: list[str], tmp_path: Path) -> None:
    with hold(whole) as other:
        before = content(whole)
        for arguments in ({}, {"overwrite": True}, {"resume": whole / "checkpoint-4"}):
            with pytest.raises(
                CheckpointError, match=f"another job is writing there .process {other.pid} on"
            ):
                job(whole, sets, **arguments)
        assert content(whole) == before
        other.communicate("\n")


def test_a_run_replaces_another_only_when_told_to(whole: Path, sets: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    job(out, sets)
    before = content(out)
    with pytest.raises(CheckpointError, match=r"spec.json is there.*--overwrite"):
        job(out, sets)
    with pytest.raises(CheckpointError, match=r"holds another run .* than that of --resume"):
        job(out, sets, whole / "checkpoint-4")
    assert content(out) == before
    job(out, [*sets, "max_steps=5"], overwrite=True)
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-5"}
    assert [line["step"] for line in read_metrics(out)[0]] == [1, 2, 3, 4, 5]
    job(out, [*sets, "max_steps=5"], out / "checkpoint-4")
    assert [line["step"] for line in read_metrics(out)[0]] == [1, 2, 3, 4, 5]
    assert [json.loads(x)["step"] for x in (out / "metrics.before-resume-4.jsonl").read_text().splitlines()]


def test_a_rank_that_leaves_before_it_heeds_signals_leaves_what_is_there_as_it_was(
    sets: list[str], whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before, world = content(out), World(0, 2, 0, 2, 1)

    def meet(array: np.ndarray, name: str) -> np.ndarray:
        if not array.any():
            raise RuntimeError("Horovod has been shut down")
        return array

    ranks = Ranks(world, meet, lambda array, name: array, lambda data, name: [data] * 2)
    framework = Framework("torch", None, None, Counting, None, (), frozenset())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        train_spec(framework, ranks, load_spec("bert", sets), out, overwrite=True)
    assert content(out) == before
