"""`hvdtrain evaluate`: a saved model's metrics are those that its job has logged, on any ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.run.saved_evaluation import read_job
from tests.jobs.evaluating import PROGRAM, evaluate
from tests.jobs.runs import TINY, launch, small_corpus, train_all


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output directory of a job on two ranks, whose compression one rank could not use."""
    root = tmp_path_factory.mktemp("evaluate")
    scenario = [
        *TINY,
        *small_corpus(root / "corpus"),
        "model.dtype=float64",
        "batch.per_device_train_batch_size=4",
        "batch.global_batch_size=16",
        "max_steps=4",
        "checkpointing.save_steps=2",
    ]
    return train_all(root, "torch", 2, {"bert": scenario})["bert"]


def test_the_metrics_are_those_that_were_logged(job: Path) -> None:
    logged = {n: v for n, v in read_metrics(job)[1][-1].items() if n.startswith("eval_")}
    assert evaluate(job) == logged | {"eval_loss": pytest.approx(logged["eval_loss"], rel=1e-14)} | {
        "eval_perplexity": pytest.approx(logged["eval_perplexity"], rel=1e-13)
    }
    assert evaluate(job / "checkpoint-2", np=2)["eval_loss"] > logged["eval_loss"]


def test_other_data_can_be_given(job: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("the words of a page\n\nand some others of them")
    found = evaluate(job, "--data", tmp_path / "other.txt")
    assert found["eval_samples"] == 2
    assert found["eval_loss"] > 0.0


def test_what_a_job_has_left_must_be_whole(job: Path, tmp_path: Path) -> None:
    def told() -> str:
        with pytest.raises(CheckpointError) as caught:
            read_job(tmp_path / "copy")
        return str(caught.value)

    shutil.copytree(job, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "model")
    assert f"its newest checkpoint is {tmp_path / 'copy' / 'checkpoint-4'}" in told()
    for content in ("[]", "{}", "{", '{"model": 3}'):
        (tmp_path / "copy" / "model").mkdir(exist_ok=True)
        (tmp_path / "copy" / "spec.json").write_text(content)
        assert "spec.json: is not what a job has written" in told()


def test_data_that_has_changed_is_refused(job: Path, tmp_path: Path) -> None:
    shutil.copytree(job, tmp_path / "copy")
    plan = json.loads((job / "plan.json").read_text())
    (tmp_path / "copy" / "plan.json").write_text(json.dumps(plan | {"train_samples": 59}))
    done = launch(1, [*PROGRAM, str(tmp_path / "copy")])
    assert done.returncode == 1
    assert "the job had 59 samples to train on" in done.stdout


def test_data_that_is_not_there_is_told(job: Path, tmp_path: Path) -> None:
    done = launch(1, [*PROGRAM, str(job), "--data", str(tmp_path / "none.txt")])
    assert done.returncode == 1
    assert "none.txt" in done.stdout
    assert "Traceback" not in done.stdout
