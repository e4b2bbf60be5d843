"""GPT-2 jobs: one trajectory in both frameworks, however a global batch is cut, and across a resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hvdtrain.core.data import eval_batches
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.runs import TINY_GPT2, train_all

PLAIN = [*TINY_GPT2, "max_steps=12", "checkpointing.save_steps=6"]
APART = [
    *TINY_GPT2,
    "max_steps=8",
    "task.reset_position_ids=true",
    "task.reset_attention_mask=true",
    "data.packing=true",
    "compression={type: powersgd, start_powerSGD_iter: 2}",
]

Runs = dict[tuple[str, int], dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("gpt2")
    every = {"plain": PLAIN, "apart": APART}
    theirs = train_all(root / "tensorflow-2", "tensorflow", 2, every, spec="gpt2")
    # One rank trains from the start, and goes on from the other framework's two.
    alone, places = {"plain": PLAIN, "resumed": PLAIN}, {"resumed": theirs["plain"] / "checkpoint-6"}
    return {
        ("torch", 1): train_all(root / "torch-1", "torch", 1, alone, places, spec="gpt2"),
        ("torch", 2): train_all(root / "torch-2", "torch", 2, every, spec="gpt2"),
        ("tensorflow", 2): theirs,
    }


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


@pytest.mark.parametrize(("name", "tolerance"), [("plain", 1e-12), ("apart", 1e-9)])
def test_both_frameworks_follow_one_trajectory(runs: Runs, name: str, tolerance: float) -> None:
    ours, theirs = losses(runs["torch", 2][name]), losses(runs["tensorflow", 2][name])
    assert len(ours) >= 6
    np.testing.assert_allclose(theirs, ours, rtol=tolerance)


def test_the_trajectories_are_of_different_jobs(runs: Runs) -> None:
    firsts = {name: losses(run)[:6].tobytes() for name, run in runs["torch", 2].items()}
    assert len(set(firsts.values())) == len(firsts)


def test_cutting_a_global_batch_changes_nothing(runs: Runs) -> None:
    np.testing.assert_allclose(
        losses(runs["torch", 2]["plain"]), losses(runs["torch", 1]["plain"]), rtol=1e-10
    )


def test_a_run_goes_on_in_the_other_framework_on_another_number_of_ranks(runs: Runs) -> None:
    rest = losses(runs["torch", 1]["resumed"])
    np.testing.assert_allclose(rest, losses(runs["torch", 2]["plain"])[6:], rtol=1e-10)


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_transformers_opens_what_was_saved_and_finds_the_same_loss(runs: Runs, framework: str) -> None:
    folder, spec = runs[framework, 2]["plain"] / "model", load_spec("gpt2", PLAIN)
    model, told = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float64)
    assert not any(told.values()), told
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    dataset, loss, weight = prepare_data(spec, print), 0.0, 0.0
    for batch in eval_batches(dataset.validation, per_device=8, rank=0, size=1):
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(batch.inputs["input_ids"]).long()).logits[:, :-1]
        logs = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(batch.targets).long()[..., None])
        loss -= float((logs[..., 0] * torch.from_numpy(batch.loss_weights)).sum())
        weight += batch.weight
    (evaluated,) = read_metrics(runs[framework, 2]["plain"])[1]
    assert evaluated["eval_loss"] == pytest.approx(loss / weight, rel=1e-6)
