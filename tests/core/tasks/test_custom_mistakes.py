"""Mistakes in a task of the user's own: every one is told."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hvdtrain.core.data import Dataset
from hvdtrain.core.errors import DataError, SpecError, TrainingError
from hvdtrain.core.run.start import check_data
from hvdtrain.core.spec.job_spec import parse_spec
from hvdtrain.core.tasks import causal_lm, custom, masked_lm
from hvdtrain.core.tasks.custom import TaskSpec
from tests.core.tasks.columns import COLUMNS, SPEC, X, Y, numbered, own_loss, prepare, with_loss


def failing(count: int = 1) -> Any:
    raise FileNotFoundError(f"images/{count}")


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": (None, {}, "data.dataset: required, but not given; name a dataset, or a function"),
    "a function that fails": (
        failing,
        {"args": {"count": 3}},
        rf"data.dataset: failing\(count=3\): FileNotFoundError: images/3 \({__file__}:\d+, in failing\)",
    ),
    "wrong arguments": (
        failing,
        {"args": {"cuont": 3}},
        rf"failing\(cuont=3\): TypeError: .*unexpected keyword argument 'cuont'.* \({__file__}:\d+\)",
    ),
    "a function that exits": (lambda: sys.exit(3), {}, r"data.dataset: <lambda>\(\): SystemExit: 3"),
    "a function without a result": (lambda: None, {}, r"<lambda>\(\) returned None; expected a dataset"),
    "arguments for nobody": (
        COLUMNS,
        {"args": {"a": 1}},
        "data.args: data.dataset is a dict, which is not called",
    ),
    "two arrays": (
        lambda: (X, Y),
        {},
        r"data.dataset is a pair of arrays; .* dataset as \{'x': x, 'labels': y\}",
    ),
    "two evaluations": (
        lambda: (COLUMNS, COLUMNS),
        {"eval_dataset": COLUMNS},
        r"data.eval_dataset: data.dataset\[1\] is a dataset to evaluate on as well; give one of them",
    ),
    "a share beside an evaluation": (
        COLUMNS,
        {"eval_dataset": COLUMNS, "validation_split": 0.5},
        "data.validation_split 0.5: data.eval_dataset is a dataset to evaluate on; set validation_split: 0",
    ),
    "an evaluation in the wrong form": (COLUMNS, {"eval_dataset": (X, Y)}, "data.eval_dataset is a tuple"),
    "a share of one sample": (
        numbered(0, 1),
        {"validation_split": 0.5},
        "data.dataset has 1 sample, too few for both",
    ),
    "no label": (
        {"x": X, "label": Y},
        {},
        r"data.dataset: cross_entropy takes one label, and samples have 'x', 'label', where "
        r"task.label_names is \['labels'\]; name the one",
    ),
    "no label to evaluate on": (
        COLUMNS,
        {"eval_dataset": {"x": X}},
        r"data.eval_dataset: cross_entropy takes one label, and samples have 'x'",
    ),
    "fractions as classes": (
        {"x": X, "labels": X},
        {},
        r"data.dataset: cross_entropy takes integer labels, the numbers of classes, and 'labels' is float64",
    ),
    "no input": ({"labels": Y}, {}, "data.dataset: samples have 'labels' only, which is the label"),
    "a taken name": (
        {"targets": X, "labels": Y},
        {},
        "data.dataset: 'targets' cannot be the name of an input",
    ),
}


@pytest.mark.parametrize(("dataset", "fields", "told"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_told(dataset: Any, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=told):
        prepare(dataset, **fields)


@pytest.mark.parametrize("task", [TaskSpec(label_names=("labels", "x")), TaskSpec(label_names=())])
def test_a_named_loss_takes_one_label(task: TaskSpec) -> None:
    with pytest.raises(DataError, match="cross_entropy takes one label"):
        prepare(COLUMNS, task)


def test_a_named_metric_takes_a_label() -> None:
    with pytest.raises(DataError, match="accuracy takes one label"):
        prepare({"x": X}, with_loss(own_loss, metrics=("accuracy",)))
    assert prepare({"x": X}, with_loss(own_loss)).train.collate(np.arange(2), 0, 2).weight == 2.0


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import nowhere_to_be_found", "data.dataset: 'ours_1:make' cannot be imported: No module named"),
        ("def made(): pass", "data.dataset: 'ours_1:make' cannot be imported: .*'make'"),
        (
            "\nx = 1 / 0",
            r"data.dataset: importing 'ours_1:make': ZeroDivisionError: .* \(.*/ours_1.py:2, in <module>\)",
        ),
        ("def make(:", r"data.dataset: importing 'ours_1:make': SyntaxError: .* \(.*/ours_1.py:1\)"),
    ],
)
def test_a_module_that_cannot_be_imported(
    source: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours_1.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises((DataError, SpecError), match=told):
        prepare("ours_1:make")
    sys.modules.pop("ours_1", None)


# What ranks compare.


def told_to_ranks(*datasets: Dataset) -> set[str]:
    met, board, told = threading.Barrier(len(datasets)), {}, set()

    def rank(number: int) -> None:
        def gather(data: bytes) -> list[bytes]:
            board[number] = data
            met.wait()
            found = [board[i] for i in range(len(datasets))]
            met.wait()
            return found

        try:
            check_data(datasets[number], SimpleNamespace(gather=gather))
        except TrainingError as error:
            told.add(str(error))

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(len(datasets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


def test_ranks_are_told_what_differs() -> None:
    (told,) = told_to_ranks(prepare(COLUMNS), prepare({"x": X[:9].astype("f4"), "labels": Y[:9]}))
    assert "train_dataset.samples is 29 on rank 0, but 9 on rank 1" in told
    assert 'train_dataset.arrays.x is "float64 (3,)" on rank 0, but "float32 (3,)" on rank 1' in told
    assert "labels is" not in told
    assert "Every rank needs the same samples in the same order" in told
    assert not told_to_ranks(prepare(COLUMNS), prepare(COLUMNS, dataloader_num_workers=1))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "task.loss=cross_entrpy",
            "task.loss: expected 'cross_entropy', 'mse', 'bce_with_logits', or a path as "
            "'package.module:name' (found 'cross_entrpy'); did you mean 'cross_entropy'?",
        ),
        ("task.loss=my loss:f", "task.loss: expected a path as 'package.module:name' (found 'my loss:f')"),
        ("task.metrics=[acuracy]", "(found 'acuracy'); did you mean 'accuracy'?"),
        ("task.label_name=[y]", "task.label_name: unknown key (value ['y']); did you mean 'label_names'?"),
        ("data.dataset=my_data", "data.dataset: expected a path as 'package.module:name' (found 'my_data')"),
        ("data.validation_split=1.0", "data.validation_split: expected a number less than 1 (found 1.0)"),
        (
            "data.dataloader_num_workers=-1",
            "data.dataloader_num_workers: expected a number greater than or equal",
        ),
        (
            "data.num_workers=2",
            "data.num_workers: unknown key (value 2); did you mean 'dataloader_num_workers'?",
        ),
    ],
)
def test_wrong_fields_are_told(override: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(SPEC, [override])
    assert told in str(caught.value)


def test_perplexity_is_that_of_language_models() -> None:
    for task in (masked_lm, causal_lm):
        assert task.summarise(np.log(3.0)) == {"perplexity": pytest.approx(3.0)}
        assert task.summarise(1e9) == {"perplexity": np.inf}
        assert task.summarise(None) == {"perplexity": None}
    assert custom.summarise(1.0) == {}


def test_metrics_of_one_name() -> None:
    twice = TaskSpec().model_copy(update={"metrics": (lambda outputs, batch: 0, lambda outputs, batch: 1)})
    with pytest.raises(SpecError, match=r"task\.metrics: more than one is called <lambda>"):
        prepare(COLUMNS, twice)


def test_metrics_without_a_dataset_to_evaluate_on() -> None:
    task, data = TaskSpec(metrics=("accuracy",)), custom.DataSpec(dataset=COLUMNS)
    said: list[str] = []
    custom.prepare(None, data, task, 0, said.append)
    assert said == ["task.metrics: there is no dataset to evaluate on, so they are not computed"]
