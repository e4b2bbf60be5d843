"""Llama jobs: one trajectory in both frameworks, however a global batch is cut, and across a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras_hub
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hvdtrain.core.data import eval_batches
from hvdtrain.core.run.job import prepare_data
from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.spec.job_spec import load_spec
from tests.jobs.runs import TINY_LLAMA, train_all

# Ranks x accumulation: 1 x 8 or 2 x 4; of the others 2 x 2.
PLAIN = [*TINY_LLAMA, "max_steps=12", "checkpointing.save_steps=6"]
FEWER = [*TINY_LLAMA, "batch.global_batch_size=4", "max_steps=8"]
APART = [
    *FEWER,
    "model.tie_word_embeddings=true",
    "model.num_key_value_heads=1",
    "model.rms_norm_eps=1e-5",
    "task.reset_position_ids=true",
    "task.reset_attention_mask=true",
    "data.packing=true",
    "compression={type: powersgd, start_powerSGD_iter: 2}",
]
EVERY = {"plain": PLAIN, "apart": APART}

Runs = dict[tuple[str, int], dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("llama")
    ours = train_all(root / "torch-2", "torch", 2, EVERY, spec="llama")
    # TensorFlow goes on from there, and trains the others from the start.
    places = {"plain": ours["plain"] / "checkpoint-6"}
    return {
        ("torch", 2): ours,
        ("torch", 1): train_all(root / "torch-1", "torch", 1, {"plain": PLAIN}, spec="llama"),
        ("tensorflow", 2): train_all(root / "tensorflow-2", "tensorflow", 2, EVERY, places, spec="llama"),
    }


def losses(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in read_metrics(run)[0]])


def test_both_frameworks_follow_one_trajectory(runs: Runs) -> None:
    ours, theirs = losses(runs["torch", 2]["apart"]), losses(runs["tensorflow", 2]["apart"])
    assert len(ours) >= 8
    np.testing.assert_allclose(theirs, ours, rtol=1e-9)


def test_the_trajectories_are_of_different_jobs(runs: Runs) -> None:
    firsts = {name: losses(run)[:8].tobytes() for name, run in runs["torch", 2].items()}
    assert len(set(firsts.values())) == len(firsts)


def test_cutting_a_global_batch_changes_nothing(runs: Runs) -> None:
    np.testing.assert_allclose(
        losses(runs["torch", 2]["plain"]), losses(runs["torch", 1]["plain"]), rtol=1e-10
    )


def test_a_run_goes_on_in_the_other_framework(runs: Runs) -> None:
    rest = losses(runs["tensorflow", 2]["plain"])
    assert len(rest) == 6
    np.testing.assert_allclose(rest, losses(runs["torch", 2]["plain"])[6:], rtol=1e-10)


def test_transformers_opens_what_was_saved_and_finds_the_same_loss(runs: Runs) -> None:
    run, spec = runs["tensorflow", 2]["plain"], load_spec("llama", PLAIN)
    folder = run / "model"
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
    (evaluated,) = read_metrics(run)[1]
    assert evaluated["eval_loss"] == pytest.approx(loss / weight, rel=1e-6)


@pytest.mark.parametrize(("name", "told"), [("plain", {}), ("apart", {"layer_norm_epsilon": 1e-5})])
def test_kerashub_opens_what_was_saved_and_finds_the_same_logits(
    runs: Runs, name: str, told: dict[str, Any]
) -> None:
    folder, text = str(runs["tensorflow", 2][name] / "model"), "The for statement iterates over items."
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    assert np.asarray(keras_hub.tokenizers.Llama3Tokenizer.from_preset(folder)(text)).tolist() == ids
    backbone = keras_hub.models.Llama3Backbone.from_preset(folder, dtype="float64", **told)
    hidden = backbone({"token_ids": np.array([ids]), "padding_mask": np.ones((1, len(ids)), int)})
    logits = np.asarray(backbone.token_embedding(hidden, reverse=True))
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        expected = model(torch.tensor([ids])).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
