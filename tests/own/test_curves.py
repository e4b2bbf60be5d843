"""Users' models in real jobs: one curve in both frameworks, however batches are cut, across a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from tests.own import data, torch_models
from tests.own.jobs import RATE, evaluations, job, losses, reference, train

ADAMW = (
    f"optimizer={{type: adamw, learning_rate: {RATE / 5}, weight_decay: 0.01}}",
    "schedule={type: cosine, warmup_steps: 5}",
    "max_grad_norm=0.3",
)
WITH_COUNT = {"label_names": ["labels", "count"]}
CNN = job(
    "CNN",
    "pictures",
    "cross_entropy",
    30,
    *ADAMW,
    "model.args={channels: 2}",
    "checkpointing.save_steps=12",
    "evaluation.eval_steps=12",
    metrics=["accuracy"],
)
OTHERS = {
    "each": job("Scores", "points", "own:each", 10, **WITH_COUNT, metrics=["own:near", "own:weighed"]),
    "pair": job("Scores", "points", "own:pair", 10, **WITH_COUNT, metrics=["own:near", "own:weighed"]),
    "mse": job("Value", "numbers", "mse", 10),
    "sides": job("Value", "sides", "bce_with_logits", 10, metrics=["accuracy"]),
    "tokens": job("Tags", "sequences", "cross_entropy", 10, metrics=["accuracy"]),
    "rows": job("Tags", "sequences", "cross_entropy", 10, normalize="example"),
}
EVERY = {"cnn": CNN, **OTHERS}
# TensorFlow takes its time to trace: the others are for slow tests, and their losses for test_objective.py.
IN_BOTH = {name: sets for name, sets in EVERY.items() if name not in ("mse", "rows")}
Runs = dict[str, dict[str, Path]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two ranks of PyTorch; of TensorFlow, from their first values; one of PyTorch, which also goes on."""
    root = tmp_path_factory.mktemp("own")
    torch2 = train(root / "torch2", "torch", 2, EVERY)
    tensorflow2 = train(
        root / "tensorflow2",
        "tensorflow",
        2,
        {**from_values_of(torch2, IN_BOTH), "resumed": CNN},
        {"resumed": torch2["cnn"] / "checkpoint-12"},
    )
    torch1 = train(
        root / "torch1",
        "torch",
        1,
        {**from_values_of(torch2, EVERY), "resumed": CNN, "alone": CNN},
        {"resumed": tensorflow2["resumed"] / "checkpoint-24", "alone": torch2["cnn"] / "checkpoint-12"},
    )
    return {"torch2": torch2, "tensorflow2": tensorflow2, "torch1": torch1}


def from_values_of(runs: dict[str, Path], scenarios: dict[str, list[str]]) -> dict[str, list[str]]:
    return {name: [*sets, f"model.init_from={runs[name] / 'initial'}"] for name, sets in scenarios.items()}


@pytest.mark.parametrize("name", IN_BOTH)
def test_both_frameworks_follow_one_curve(runs: Runs, name: str) -> None:
    ours, theirs = losses(runs["torch2"][name]), losses(runs["tensorflow2"][name])
    np.testing.assert_allclose(theirs, ours, rtol=1e-9)
    assert len(ours) >= 10
    assert ours[-3:].mean() < 0.9 * ours[:3].mean()


@pytest.mark.parametrize("name", EVERY)
def test_one_process_equals_two_ranks(runs: Runs, name: str) -> None:
    np.testing.assert_allclose(losses(runs["torch1"][name]), losses(runs["torch2"][name]), rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "size"), [("torch", 4), ("tensorflow", 1), ("tensorflow", 4)])
def test_so_do_others(runs: Runs, framework: str, size: int, tmp_path: Path) -> None:
    found = train(tmp_path / "runs", framework, size, from_values_of(runs["torch2"], EVERY))
    for name, run in found.items():
        np.testing.assert_allclose(losses(run), losses(runs["torch1"][name]), rtol=1e-10, err_msg=name)


def _sum(total: torch.Tensor, weight: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return total, torch.as_tensor(weight)


def _each(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> Any:
    return _sum(functional.cross_entropy(outputs, batch["labels"], reduction="sum"), len(outputs))


def _pair(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> Any:
    found = functional.cross_entropy(outputs, batch["labels"], reduction="none")
    return _sum((found * batch["count"]).sum(), batch["count"].sum())


def _mse(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> Any:
    return _sum(functional.mse_loss(outputs, batch["labels"], reduction="sum"), len(outputs))


def _sides(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> Any:
    found = functional.binary_cross_entropy_with_logits(outputs, batch["labels"].double(), reduction="sum")
    return _sum(found, len(outputs))


def _tokens(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> Any:
    labels = batch["labels"]
    return _sum(functional.cross_entropy(outputs.mT, labels, reduction="sum"), (labels != -100).sum())


def _rows(outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> Any:
    """The mean over a row's tokens, and then over the rows that have any."""
    found = functional.cross_entropy(outputs.mT, batch["labels"], reduction="none")
    counts = (batch["labels"] != -100).sum(1)
    return _sum((found.sum(1) / counts.clamp(min=1)).sum(), (counts > 0).sum())


@pytest.mark.parametrize(
    ("name", "model", "dataset", "loss"),
    [
        ("each", torch_models.Scores, data.points, _each),
        ("pair", torch_models.Scores, data.points, _pair),
        ("mse", torch_models.Value, data.numbers, _mse),
        ("sides", torch_models.Value, data.sides, _sides),
        ("tokens", torch_models.Tags, data.sequences, _tokens),
        ("rows", torch_models.Tags, data.sequences, _rows),
    ],
)
def test_the_curve_is_that_of_a_plain_loop_of_pytorch(
    runs: Runs,
    name: str,
    model: Callable[[], torch.nn.Module],
    dataset: Callable[[], tuple[data.Arrays, data.Arrays]],
    loss: Callable[..., Any],
) -> None:
    found = [runs["torch2"][name], *([runs["tensorflow2"][name]] if name in IN_BOTH else [])]
    for run in found:
        expected = reference(run, model(), dataset, loss, 10)
        np.testing.assert_allclose(losses(run), expected, rtol=1e-10)


def outputs_of(run: Path, model: torch.nn.Module, inputs: np.ndarray) -> np.ndarray:
    """What the saved model makes of inputs, outside of hvdtrain."""
    model.double().load_state_dict(load_file(run / "model" / "model.safetensors"))
    with torch.no_grad():
        return model.eval()(torch.from_numpy(inputs)).numpy()


@pytest.mark.parametrize("where", ["torch1", "torch2", "tensorflow2"])
def test_metrics_are_exact_whatever_the_ranks(runs: Runs, where: str) -> None:
    found, (_, arrays) = runs[where], data.points()
    labels, count = arrays["labels"], arrays["count"]
    for name in ("each", "pair"):
        outputs = outputs_of(found[name], torch_models.Scores(), arrays["x"])
        (told,) = evaluations(found[name])
        second_best = np.sort(outputs, 1)[:, -2]
        near = outputs[np.arange(len(labels)), labels] >= second_best
        right = outputs.argmax(1) == labels
        assert told["eval_near"] == pytest.approx(near.mean(), rel=1e-15)
        assert told["eval_weighed"] == pytest.approx((right * count).sum() / count.sum(), rel=1e-15)
        each = np.log(np.exp(outputs).sum(1)) - outputs[np.arange(len(labels)), labels]
        weights = count if name == "pair" else np.ones(len(labels))
        assert told["eval_loss"] == pytest.approx((each * weights).sum() / weights.sum(), rel=1e-12)
        assert told["eval_samples"] == data.EVALUATION


@pytest.mark.parametrize("where", ["torch1", "torch2", "tensorflow2"])
def test_accuracy_is_exact_whatever_the_ranks(runs: Runs, where: str) -> None:
    found = runs[where]
    (_, pictures), (_, sides), (_, tags) = data.pictures(), data.sides(), data.sequences()
    outputs = outputs_of(found["cnn"], torch_models.CNN(channels=2), pictures["image"])
    right = outputs.argmax(-1) == pictures["labels"]
    assert evaluations(found["cnn"])[-1]["eval_accuracy"] == pytest.approx(right.mean(), rel=1e-15)
    right = (outputs_of(found["sides"], torch_models.Value(), sides["x"]) > 0) == sides["labels"]
    assert evaluations(found["sides"])[-1]["eval_accuracy"] == pytest.approx(right.mean(), rel=1e-15)
    labels = tags["labels"]
    right = outputs_of(found["tokens"], torch_models.Tags(), tags["ids"]).argmax(-1) == labels
    expected = right[labels != -100].mean()
    assert evaluations(found["tokens"])[-1]["eval_accuracy"] == pytest.approx(expected, rel=1e-15)


def test_a_checkpoint_goes_on_in_the_other_framework_and_back(runs: Runs) -> None:
    whole = losses(runs["torch2"]["cnn"])
    np.testing.assert_allclose(losses(runs["tensorflow2"]["resumed"]), whole[12:], rtol=1e-9)
    np.testing.assert_allclose(losses(runs["torch1"]["resumed"]), whole[24:], rtol=1e-9)


def test_a_checkpoint_goes_on_on_another_number_of_ranks(runs: Runs) -> None:
    np.testing.assert_allclose(
        losses(runs["torch1"]["alone"]), losses(runs["torch2"]["cnn"])[12:], rtol=1e-10
    )
