"""What a user does wrong is told in one message, before the first update where it can be known by then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.runs import launch

SLOW = pytest.mark.slow
BUT_TORCH = ["torch", pytest.param("tensorflow", marks=SLOW)]
# What every rank is told, whatever the framework.
TOLD = {
    "mean": "SpecError: task.loss: __main__:cases.<locals>.mean returned one number for 1 example(s); ",
    "mean in a pair": "it is a mean over the batch. Return a loss for each example (reduction='none')",
    "mean for each": "it is a mean over the batch. Return each example's own loss",
    "rows in a pair": "returned a pair of shapes (1,) and (1,) for 1 example(s); expected two numbers",
    "buggy loss": "task.loss: __main__:cases.<locals>.buggy(outputs, batch): KeyError: 'nothing' (",
    # Before the first update, not when it is computed for the first time.
    "buggy metric": "task.metrics: __main__:cases.<locals>.buggy(outputs, batch): KeyError: 'nothing' (",
    "unknown loss": "(found 'cross_entrop'); did you mean 'cross_entropy'?",
    "pair and adasum": "SpecError: compression.type: adasum combines gradients of each rank's own mean loss",
    "unused": "TrainingError: model: the loss does not depend on ",
    "other data": 'train_dataset.content is "',
    "other shapes": 'is "(8,)" on rank 0, but "(9,)" on rank 1',
    "other weights": 'is missing on rank 0, but "(2, 2)" on rank 1',
    "other buffer": 'table is "(3,), not trained" on rank 0, but "(4,), not trained" on rank 1',
    "no array": "DataError: data.dataset[0]['x'] is an object; expected an array or a number",
    "text": "DataError: data.dataset[0] is a str; expected an array or a number",
    "frozen": "frozen: the model has no trainable parameter, so there is nothing to train",
    "two models": "the spec says 'some:model', and the program gives the argument model as well",
    "packaged model": "model: the spec's model section says model_type 'bert', and the program gives the ",
    "instance": "expected a function or a class that returns a new model, found Net",
    "no function": "expected a function or a class that returns a new model, found int",
    "builder raises": "_raises: RuntimeError: no weights today (",
    "builder takes more": "'depth'",
    "no model": "<lambda> returned a ndarray; expected a ",
    "wrong outputs": "task.loss: mse: the model's output has shape (1, 1), and the labels (1,); expected",
    "wrong rows": "task.loss: bce_with_logits: the model's output has shape (1, 1), and the labels (1,)",
    "other framework": ": give the function or class that builds it, as 'package.module:name'",
    "no such module": "'tests.own.nowhere:build' cannot be imported",
    "wrong names": "SpecError: model.names: no ",
}
OF_ONE = {
    "torch": {
        "other inputs": "the forward pass: RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        "gathered": "with zero_stage 3 a module has its own weights alone, those of another are NaN",
    },
    "tensorflow": {
        "regularizer": "its layers add losses of their own (regularizers, add_loss)",
        "gathered": "zero_stage: 3 gathers weights layer by layer, and in TensorFlow model_type custom ",
    },
}
ALONE = {
    "mean": "[rank 0] error: task.loss: ",
    "no folder": "[rank 0] error: model.init_from: ",
    "other folder": "[rank 0] error: model.init_from ",
    "builder raises on rank 1": "[rank 1] error: model.",
    "data breaks on rank 1": "OSError: the disk of rank 1 is gone (",
}


@pytest.mark.parametrize("framework", BUT_TORCH)
def test_every_rank_is_told(framework: str, tmp_path: Path) -> None:
    done = launch(2, ["-m", "tests.own.mistakes", framework, str(tmp_path)])
    assert done.returncode == 0, done.stdout[-5000:]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert found[0].pop("good") == found[1].pop("good") == f"done: {tmp_path / 'good' / 'model'}"
    for name, expected in (TOLD | OF_ONE[framework]).items():
        for rank in range(2):
            assert expected in found[rank][name], name
        assert not (tmp_path / name / "model").exists(), name
    fields = found[0]
    assert f"model.{framework}: " in fields["frozen"]
    assert f"model.{framework}: this spec has no model for {framework}" in fields["other framework"]


@pytest.mark.parametrize("framework", BUT_TORCH)
@pytest.mark.parametrize(
    "name", [n if n == "data breaks on rank 1" else pytest.param(n, marks=SLOW) for n in ALONE]
)
def test_one_ranks_error_ends_the_job_and_is_shown_first(framework: str, name: str, tmp_path: Path) -> None:
    if name == "other folder":
        assert (
            launch(2, ["-m", "tests.own.mistakes", framework, str(tmp_path / "good"), "good"]).returncode == 0
        )
    done = launch(2, ["-m", "tests.own.mistakes", framework, str(tmp_path / "out"), name])
    assert done.returncode != 0
    assert done.stdout.count("error: ") == 1, done.stdout[-3000:]
    assert ALONE[name] in done.stdout, done.stdout[-3000:]
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "out" / "model").exists()
