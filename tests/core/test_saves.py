"""When a run saves, in the background or not, and what it keeps: the loop around updates that do nothing."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from hvdtrain.cli import app
from hvdtrain.core.checkpoints import model_folder
from hvdtrain.core.checkpoints.finding import AUTO
from hvdtrain.core.checkpoints.manifest import read_manifest
from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.run import requests, saving
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.lock import locked
from hvdtrain.core.spec.job_spec import load_spec
from tests.core import test_resume
from tests.core.test_going_on import Counting, content, job
from tests.core.test_lock import hold
from tests.jobs.runs import TINY, small_corpus

SETS = (
    *TINY,
    "model.dtype=float64",
    # Three updates an epoch.
    "batch={per_device_train_batch_size: 21}",
    "max_steps=8",
    "logging.progress_bar=false",
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("corpus")
    return [*SETS, f"data.cache_dir={root}/cache", *small_corpus(root)]


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """The validation loss after each update, for tests to fill; 9 after others."""
    found: dict[int, float] = {}

    class Measured(Counting):
        updates = 0

        def update(self, *arguments: Any) -> Any:
            self.updates += 1
            return super().update(*arguments)

        def evaluate(self, batch: Any) -> np.ndarray:
            return np.array([batch.weight * found.get(self.updates, 9.0), batch.weight])

    monkeypatch.setattr("tests.core.test_going_on.Counting", Measured)
    return found


def kept(run: Path) -> set[int]:
    names = (path.name.partition("-")[2] for path in run.glob("checkpoint-*"))
    return {int(name) for name in names if name.isdecimal()}


def steps(model: Path, start: Path) -> float:
    """Updates between two models: each adds 1 to every weight."""
    name = "cls.predictions.bias"
    return round(float((load_model(model)[name] - load_model(start)[name])[0]), 6)


@pytest.fixture
def no_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every window becomes an update, unless a test says otherwise."""
    monkeypatch.setattr(test_resume, "BAD_WINDOWS", set())
    monkeypatch.setattr(test_resume, "EMPTY_WINDOWS", set())


@pytest.mark.usefixtures("no_skips")
@pytest.mark.parametrize(
    ("compression", "expected"),
    [
        ("{type: none}", [3, 6, 8]),
        # At the exchange after the end of an epoch.
        ("{type: local_sgd, sync_every: 2}", [4, 6, 8]),
        ("{type: local_sgd, sync_every: 2, overlap: true}", [4, 6, 8]),
    ],
)
def test_by_epochs_a_run_saves_when_one_has_ended(
    sets: list[str], tmp_path: Path, compression: str, expected: list[int]
) -> None:
    spec = load_spec("bert", [*sets, f"compression={compression}", "checkpointing.save_strategy=epoch"])
    test_resume.train(tmp_path / "run", spec, prepare_data(spec, print))
    assert sorted(kept(tmp_path / "run")) == expected


@pytest.mark.usefixtures("no_skips")
def test_an_epoch_whose_last_update_was_skipped_is_saved_after_the_next(
    sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_resume, "BAD_WINDOWS", {2})
    spec = load_spec("bert", [*sets, "checkpointing.save_strategy=epoch", "max_steps=6"])
    test_resume.train(tmp_path / "run", spec, prepare_data(spec, print))
    # Windows 1 to 3 are the first epoch; updates 1, 2 and 3 are windows 1, 2 and 4.
    assert sorted(kept(tmp_path / "run")) == [3, 5, 6]


@pytest.mark.usefixtures("no_skips")
@pytest.mark.parametrize(
    ("compression", "expected"),
    [
        ("{type: none}", [3, 6, 8]),
        # It is asked once in two updates.
        ("{type: local_sgd, sync_every: 2, overlap: true}", [6, 8]),
    ],
)
def test_by_minutes_rank_0s_clock_decides(
    sets: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    expected: list[int],
) -> None:
    ticks = itertools.count(0, 10)
    # Ten seconds pass whenever somebody looks.
    monkeypatch.setattr(requests, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    by_time = ["checkpointing.save_strategy=minutes", "checkpointing.save_minutes=0.5"]
    spec = load_spec("bert", [*sets, f"compression={compression}", *by_time])
    test_resume.train(tmp_path / "run", spec, prepare_data(spec, print))
    assert sorted(kept(tmp_path / "run")) == expected


def test_the_newest_are_kept_and_the_best_and_the_model_is_the_best(
    sets: list[str], tmp_path: Path, losses: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    losses |= {1: 5.0, 2: 2.0, 3: 3.0, 4: 2.0, 8: 4.0}
    every = [
        *sets,
        "checkpointing.save_steps=1",
        "evaluation.eval_steps=1",
        "checkpointing.save_total_limit=3",
    ]
    job(tmp_path / "newest", every)
    assert kept(tmp_path / "newest") == {6, 7, 8}
    job(tmp_path / "best", [*every, "checkpointing.save_best=true"])
    assert kept(tmp_path / "best") == {2, 7, 8}
    manifest = read_manifest(tmp_path / "best" / "checkpoint-2")
    assert manifest is not None
    assert manifest.metrics.keys() == {"loss", "eval_loss", "eval_perplexity", "eval_samples"}
    assert manifest.metrics["eval_loss"] == 2.0
    start = tmp_path / "best" / "checkpoint-2"
    assert steps(tmp_path / "best" / "model", start) == 6.0
    assert (tmp_path / "best" / "latest").read_text() == "checkpoint-8\n"
    best = [*every, "checkpointing.load_best_model_at_end=true"]
    job(tmp_path / "loaded", best)
    assert kept(tmp_path / "loaded") == {2, 7, 8}
    model = tmp_path / "loaded" / "model"
    assert steps(model, start) == 0.0
    assert {f.name for f in model.iterdir()} == {f.name for f in (tmp_path / "best" / "model").iterdir()}
    assert f"{model} is the model of checkpoint-2, the best by eval_loss" in capsys.readouterr().out
    # The state of the end may be the best one itself; and the greatest loss may be.
    job(tmp_path / "last", [*best, "checkpointing.greater_is_better=true", "max_steps=5"])
    assert steps(tmp_path / "last" / "model", start) == 3.0
    assert kept(tmp_path / "last") == {3, 4, 5}


def test_a_damaged_best_checkpoint_is_passed_over(
    sets: list[str],
    tmp_path: Path,
    losses: dict[int, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    losses |= {2: 1.0, 4: 2.0}
    save = saving.save_final_model

    def damaged(run: Any, *arguments: Any) -> None:
        weights = run.output_dir / "checkpoint-2" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        save(run, *arguments)

    monkeypatch.setattr("hvdtrain.core.run.training.save_final_model", damaged)
    every = ["checkpointing.save_steps=2", "evaluation.eval_steps=2"]
    job(tmp_path / "out", [*sets, *every, "checkpointing.load_best_model_at_end=true"])
    assert steps(tmp_path / "out" / "model", tmp_path / "out" / "checkpoint-4") == 0.0
    assert "passed over checkpoint-2, which was the best: " in capsys.readouterr().out


def test_by_epochs_the_best_is_measured_when_it_is_saved(
    sets: list[str], tmp_path: Path, losses: dict[int, float]
) -> None:
    losses |= {3: 1.0}
    job(
        tmp_path / "out",
        [*sets, "checkpointing={save_strategy: epoch, save_best: true, save_total_limit: 1}"],
    )
    assert kept(tmp_path / "out") == {3, 8}


def test_training_goes_on_while_a_copy_is_written(
    sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, save_model = Counting.update, saving.save_model
    further, threads = threading.Event(), {}

    def counted(self: Any, *arguments: Any) -> Any:
        result = update(self, *arguments)
        if arguments[4] == 6:
            further.set()
        return result

    def slow(directory: Path, *arguments: Any) -> None:
        threads[directory.name] = threading.current_thread() is threading.main_thread()
        if not threads[directory.name]:
            assert further.wait(60)
        save_model(directory, *arguments)

    monkeypatch.setattr(Counting, "update", counted)
    monkeypatch.setattr(saving, "save_model", slow)
    job(tmp_path / "out", [*sets, "checkpointing.save_steps=4"])
    # Those of the end are written when there is nothing else to do.
    assert threads == {"checkpoint-4": False, "model": True, "checkpoint-8": True}
    # Of update 4, although two more had been taken when it was written.
    assert steps(tmp_path / "out" / "checkpoint-8", tmp_path / "out" / "checkpoint-4") == 4.0
    job(tmp_path / "at once", [*sets, "checkpointing={save_steps: 4, async_save: false}"])
    assert set(threads.values()) == {True} or threads["checkpoint-4"]


@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_ends_the_run_and_leaves_earlier_checkpoints(
    sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_background: bool
) -> None:
    out, write, before = tmp_path / "out", model_folder.write_arrays, {}

    def full(path: Path, stream: Any) -> Any:
        if path.name == "optimizer.safetensors" and "checkpoint-4" in str(path):
            before.update(content(out / "checkpoint-2"))
            path.write_bytes(b"as far as it came")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, stream)

    monkeypatch.setattr(model_folder, "write_arrays", full)
    # With a limit of 1: nothing is deleted before the next one is whole.
    saves = f"checkpointing={{save_steps: 2, save_total_limit: 1, async_save: {in_background}}}".lower()
    with pytest.raises(CheckpointError, match=r"checkpoint-4: the model could not be saved: .*No space left"):
        job(out, [*sets, saves, "max_steps=200"])
    assert content(out / "checkpoint-2") == before
    assert {path.name for path in out.iterdir() if "checkpoint" in path.name} == {"checkpoint-2"}
    assert (out / "latest").read_text() == "checkpoint-2\n"
    assert not (out / "model").exists()


def test_a_checkpoint_that_outlives_a_power_failure_has_its_lines_in_the_log_and_its_name_in_latest(
    sets: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fsync, synced = tmp_path / "out", os.fsync, []

    def watched(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        name = path.name.partition(".tmp-")[0]
        if path == out / "metrics.jsonl":
            name += f" {json.loads(path.read_text().splitlines()[-1])['step']}"
        fsync(handle)
        synced.append(name)

    monkeypatch.setattr(os, "fsync", watched)
    job(out, [*sets, "checkpointing={save_steps: 4, async_save: false}"])
    # Not at every line.
    assert [name for name in synced if name.startswith("metrics")] == ["metrics.jsonl 4", "metrics.jsonl 8"]
    for step in (4, 8):
        assert synced.index(f"metrics.jsonl {step}") < synced.index(f".checkpoint-{step}")
    # A new name is on disk when its directory is.
    small = [place for place, name in enumerate(synced) if name.endswith(".unfinished")]
    assert {synced[place] for place in small} >= {".spec.json.unfinished", ".latest.unfinished"}
    assert all(synced[place + 1] == "out" for place in small)


def test_the_next_run_removes_what_a_killed_one_has_left(sets: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    job(out, [*sets, "checkpointing.save_steps=3"])
    for left in (".checkpoint-9.tmp-77", ".checkpoint-3.before-x1", ".model.tmp-5", ".latest.unfinished"):
        (out / left).mkdir()
        (out / left / "part").write_text("torn")
    others = {".profile.before-upgrade", ".notes.tmp-1", ".hidden"}
    for name in others:
        (out / name).write_text("somebody's own")
    shutil.rmtree(out / "checkpoint-8")
    job(out, [*sets, "checkpointing.save_steps=3"], out / "checkpoint-6")
    assert {path.name for path in out.glob(".*")} == others
    assert kept(out) == {3, 6, 8}


def test_checkpoints_of_a_history_that_was_left_are_set_aside(sets: list[str], tmp_path: Path) -> None:
    out, every = tmp_path / "out", [*sets, "checkpointing.save_steps=2", "evaluation.eval_steps=2"]
    job(out, every)
    old = content(out / "checkpoint-6")
    for _ in range(2):
        job(out, [*every, "checkpointing.save_steps=3", "evaluation.eval_steps=3"], out / "checkpoint-4")
    assert kept(out) == {2, 4, 6, 8}
    later = {f"checkpoint-{step}.before-resume-4" for step in (6, 8)}
    assert {path.name for path in out.glob("checkpoint-*.*")} == later
    assert content(out / "checkpoint-6") != old
    # What is torn is not history: it is replaced in its turn.
    (out / "checkpoint-8" / "manifest.json").unlink()
    job(out, every, AUTO)
    assert {path.name for path in out.glob("checkpoint-*.*")} == later
    assert (out / "latest").read_text() == "checkpoint-8\n"


def prune(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["checkpoints", *arguments])
    return done.exit_code, done.output if done.exception is None else str(done.exception)


def test_pruning_keeps_what_the_run_would_and_says_what_it_deletes(
    sets: list[str], tmp_path: Path, losses: dict[int, float]
) -> None:
    losses |= {2: 1.0}
    out, every = tmp_path / "out", [*sets, "evaluation.eval_steps=1", "checkpointing.save_steps=1"]
    job(out, [*every, "checkpointing.save_best=true"])
    assert kept(out) == set(range(1, 9))
    status, told = prune(str(out), "--prune")
    assert (status, told) == (0, f"{out}: 0 bytes deleted\n")
    (out / ".checkpoint-3.tmp-9").mkdir()
    (out / ".checkpoint-3.tmp-9" / "part").write_bytes(bytes(100))
    (out / "checkpoint-5" / "state.json").unlink()
    # Of the right size: every byte is read before others are deleted for it.
    weights = out / "checkpoint-8" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    sizes = {
        path.name: sum(file.stat().st_size for file in path.iterdir()) for path in out.glob("checkpoint-*")
    }
    status, told = prune(str(out), "--prune", "--keep", "3")
    assert status == 0
    gone = {".checkpoint-3.tmp-9": 100} | {n: sizes[n] for n in [f"checkpoint-{i}" for i in (5, 8, 1, 3, 4)]}
    lines = [f"deleted {name} ({size} bytes)" for name, size in gone.items()]
    assert told.splitlines() == [*lines, f"{out}: {sum(gone.values())} bytes deleted"]
    assert kept(out) == {2, 6, 7}
    assert not [*out.glob(".*")]


def test_pruning_is_refused_where_a_job_writes_or_there_is_no_run(sets: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    job(out, [*sets, "checkpointing={save_steps: 2, save_total_limit: 3}"])
    before = content(out)
    with hold(out) as holder:
        status, told = prune(str(out), "--prune", "--keep", "1")
        holder.communicate("\n")
    assert status == 1
    assert "another job is writing there" in told
    assert content(out) == before
    for place, expected in (
        (tmp_path / "none", "no such directory"),
        (tmp_path, "spec.json: cannot be read"),
    ):
        status, told = prune(str(place), "--prune")
        assert status == 1
        assert expected in told
    status, told = prune(str(out), "--keep", "1")
    assert "--keep goes with --prune" in told
    for other in ("--verify", "--json"):
        status, told = prune(str(out), "--prune", other)
        assert status == 1
        assert "leave --verify and --json out" in told
    with locked(out):
        pass


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (
            "{save_strategy: epoch, save_steps: 4}",
            "save_steps goes with save_strategy: steps (found 'epoch')",
        ),
        ("{save_steps: 4, save_minutes: 4}", "save_minutes goes with save_strategy: minutes"),
        ("{save_strategy: minutes}", "save_strategy: minutes needs save_minutes"),
        ("{save_total_limit: 2}", "save_total_limit needs checkpoints: give save_steps"),
        ("{load_best_model_at_end: true}", "load_best_model_at_end needs checkpoints"),
        (
            "{save_steps: 6, save_best: true}",
            "save_steps: 6 with evaluation.eval_steps 4: the best checkpoint",
        ),
        (
            "{save_strategy: epoch, save_best: true, metric_for_best_model: accuracy}",
            "metric_for_best_model: expected one of eval_loss, eval_perplexity (found 'accuracy')",
        ),
        ("{save_strategy: epochs}", "expected one of steps, epoch, minutes"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(section: str, expected: str) -> None:
    with pytest.raises(SpecError) as found:
        load_spec("bert", ["evaluation.eval_steps=4", f"checkpointing={section}"])
    assert expected in str(found.value)


def test_the_best_checkpoint_needs_something_to_evaluate(sets: list[str], tmp_path: Path) -> None:
    best = "checkpointing={save_strategy: epoch, save_best: true}"
    with pytest.raises(SpecError, match="is found by the validation split, which is empty"):
        job(tmp_path / "out", [*sets, best, "data.validation_split=0.0"])


def test_the_best_model_of_a_classifier_may_be_that_of_any_metric() -> None:
    sets = ["evaluation.eval_steps=4", "checkpointing={save_steps: 8, save_best: true}"]
    for metric, greater in (("accuracy", True), ("eval_macro_f1", True), ("loss", False)):
        spec = load_spec("bert-classify", [*sets, f"checkpointing.metric_for_best_model={metric}"])
        assert spec.checkpointing.best_metric == f"eval_{metric.removeprefix('eval_')}"
        assert spec.checkpointing.greater_wins == greater
