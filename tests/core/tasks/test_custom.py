"""A task of the user's own: where datasets come from, what a batch weighs, and every mistake told."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data import Batch, Dataset
from hvdtrain.core.data.order import rank_share
from hvdtrain.core.errors import DataError, SpecError, TrainingError
from hvdtrain.core.run.start import check_data
from hvdtrain.core.spec.job_spec import JobSpec, parse_spec
from hvdtrain.core.tasks import TASKS, causal_lm, custom, masked_lm
from hvdtrain.core.tasks.custom import DataSpec, TaskSpec, make_batch

N = 29
X = np.random.default_rng(0).normal(size=(N, 3))
Y = np.random.default_rng(1).integers(0, 4, N)
COLUMNS = {"x": X, "labels": Y}


def prepare(dataset: Any, task: TaskSpec | None = None, seed: int = 5, **fields: Any) -> Dataset:
    objects = {name: fields.pop(name) for name in ("eval_dataset", "collate_fn") if name in fields}
    data = DataSpec(**fields).model_copy(update={"dataset": dataset, **objects})
    return custom.prepare(None, data, task or TaskSpec(), seed, said.append)


said: list[str] = []


def own_loss(outputs: Any, batch: Any) -> Any:
    return outputs


def with_loss(loss: Any, **fields: Any) -> TaskSpec:
    return TaskSpec(**fields).model_copy(update={"loss": loss})


# What a batch holds and weighs.


@given(st.lists(st.integers(0, N - 1), max_size=N), st.integers(1, 8), st.integers(1, 3))
def test_the_shares_of_all_ranks_are_the_global_batch(chosen: list[int], size: int, micro: int) -> None:
    train = prepare(COLUMNS).train
    per_device = -(-N // size // micro) + 1
    shares = [rank_share(np.array(chosen, np.int64), rank, size, micro, per_device) for rank in range(size)]
    parts = [train.collate(share, 0, per_device) for rank in shares for share in rank]
    np.testing.assert_array_equal(
        np.concatenate([part.inputs["x"] for part in parts]), X[chosen].reshape(-1, 3)
    )
    np.testing.assert_array_equal(np.concatenate([part.targets for part in parts]), Y[chosen])
    assert sum(part.weight for part in parts) == len(chosen)
    for part in parts:
        assert part.counts["samples"] == part.counts["tokens"] == len(part.inputs["x"]) == part.weight
        assert {each.dtype for each in (part.targets, part.inputs["x"])} == {Y.dtype, X.dtype}


labels = st.integers(1, 5).flatmap(
    lambda length: st.lists(
        st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=length, max_size=length), min_size=1, max_size=6
    )
)


@given(labels, st.sampled_from(["token", "example"]))
def test_ignored_labels_weigh_nothing(rows: list[list[int]], normalize: Any) -> None:
    targets = np.array(rows)
    batch = make_batch({"x": targets, "labels": targets}, TaskSpec(normalize=normalize))
    predicted = [[label != -100 for label in row] for row in rows]
    for row, weights in zip(predicted, batch.loss_weights, strict=True):
        each = 1.0 if normalize == "token" else 1.0 / max(sum(row), 1)
        assert weights.tolist() == [each * one for one in row]
    counted = sum(map(sum, predicted)) if normalize == "token" else sum(map(any, predicted))
    assert batch.weight == counted
    np.testing.assert_allclose(batch.loss_weights.sum(), batch.weight, rtol=1e-12)


@given(labels)
def test_the_divisor_is_that_of_pytorchs_mean(rows: list[list[int]]) -> None:
    targets, logits = np.array(rows), np.random.default_rng(0).normal(size=(len(rows), 3, len(rows[0])))
    batch = make_batch({"x": logits, "labels": targets}, TaskSpec())
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(targets), reduction="none"
    ).numpy()
    mean = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(targets)).item()
    if batch.weight:
        np.testing.assert_allclose((losses * batch.loss_weights).sum() / batch.weight, mean, rtol=1e-12)
    # The loss of several elements.
    batch = make_batch({"x": logits, "labels": logits + 1}, TaskSpec(loss="mse"))
    mean = torch.nn.functional.mse_loss(torch.tensor(logits), torch.tensor(logits + 2)).item()
    np.testing.assert_allclose((4 * batch.loss_weights).sum() / batch.weight, mean, rtol=1e-12)


@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
@pytest.mark.parametrize(("normalize", "each", "weight"), [("token", 1.0, 8.0), ("example", 0.5, 4.0)])
def test_each_element_of_a_label_is_a_prediction(
    loss: str, normalize: Any, each: float, weight: float
) -> None:
    # -100 is a number like any other here.
    batch = make_batch(
        {"x": X[:4], "labels": np.full((4, 2), -100.0)}, TaskSpec(loss=loss, normalize=normalize)
    )
    np.testing.assert_array_equal(batch.loss_weights, np.full((4, 2), each))
    assert batch.weight == weight


@pytest.mark.parametrize("normalize", ["token", "example"])
@pytest.mark.parametrize("loss", [own_loss, "my_package.losses:own"])
def test_a_function_gives_one_loss_a_sample(loss: Any, normalize: Any) -> None:
    targets = np.full((4, 2), -100)
    batch = make_batch({"x": X[:4], "labels": targets}, with_loss(loss, normalize=normalize))
    assert batch.loss_weights.tolist() == [1.0] * 4
    assert batch.weight == 4.0
    np.testing.assert_array_equal(batch.targets, targets)


@pytest.mark.parametrize(
    ("names", "inputs"), [(("a", "b"), ["x", "a", "b"]), ((), ["x", "a", "b"]), (("a",), ["x", "b"])]
)
def test_only_a_single_label_leaves_the_inputs(names: tuple[str, ...], inputs: list[str]) -> None:
    arrays = {"x": X[:4], "a": Y[:4], "b": Y[4:8]}
    batch = make_batch(arrays, with_loss(own_loss, label_names=names))
    assert [*batch.inputs] == inputs
    assert (batch.targets.shape, batch.targets.dtype) == (
        ((4,), Y.dtype) if len(names) == 1 else ((4, 0), np.int32)
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", own_loss])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_of_no_samples_has_the_shapes_of_one(loss: Any, workers: int) -> None:
    dataset = [{"x": X[:2], "labels": Y[:3]}] * 4
    split = prepare(dataset, with_loss(loss), dataloader_num_workers=workers).train
    none, two = (split.collate(np.arange(count), 0, 8) for count in (0, 2))
    assert none.arrays().keys() == two.arrays().keys()
    for name, array in none.arrays().items():
        assert (array.shape, array.dtype) == ((0, *two.arrays()[name].shape[1:]), two.arrays()[name].dtype)
    assert (none.weight, none.counts) == (0.0, {"samples": 0, "tokens": 0})


# Where the datasets come from.


def labels_of(split: Any) -> list[int]:
    batch: Batch = split.collate(np.arange(len(split)), 0, len(split))
    return [int(label) for label in batch.targets]


def numbered(first: int, count: int) -> dict[str, Any]:
    return {"x": np.zeros((count, 2)), "labels": np.arange(first, first + count)}


class Own:
    """A dataset class."""

    def __init__(self, count: int = 4) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return {"x": 0.0, "labels": index}


@pytest.mark.parametrize(
    ("dataset", "fields", "train", "evaluation"),
    [
        (numbered(0, 3), {}, 3, []),
        (lambda count: numbered(0, count), {"args": {"count": 3}}, 3, []),
        (Own, {}, 4, []),
        (Own, {"args": {"count": 3}}, 3, []),
        (Own(3), {}, 3, []),
        (lambda: (numbered(0, 3), numbered(7, 2)), {}, 3, [7, 8]),
        (lambda: {"train": numbered(0, 3), "validation": numbered(7, 2)}, {}, 3, [7, 8]),
        ({"train": numbered(0, 3), "test": numbered(7, 2)}, {}, 3, []),
        (numbered(0, 3), {"eval_dataset": numbered(7, 2)}, 3, [7, 8]),
        (
            lambda first: numbered(0, 3),
            {"eval_dataset": lambda first: numbered(first, 2), "args": {"first": 7}},
            3,
            [7, 8],
        ),
        (numbered(0, 3), {"eval_dataset": Own, "args": {"count": 2}}, 3, [0, 1]),
    ],
)
def test_data_sets_come_from_objects_and_functions(
    dataset: Any, fields: dict[str, Any], train: int, evaluation: list[int]
) -> None:
    said.clear()
    found = prepare(dataset, **fields)
    assert labels_of(found.train) == [*range(train)]
    assert labels_of(found.validation) == evaluation
    np.testing.assert_array_equal(found.train.costs, np.ones(train))
    told = ["data.dataset: 'test' is not used; give it as data.eval_dataset to evaluate on it"]
    assert said == (told if isinstance(dataset, dict) and "test" in dataset else [])


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 3))
def test_a_share_is_kept_for_evaluation(count: int, share: float, seed: int) -> None:
    found = prepare(numbered(0, count), seed=seed, validation_split=share)
    train, kept = labels_of(found.train), labels_of(found.validation)
    assert sorted(train + kept) == [*range(count)]
    assert len(kept) == min(max(1, round(share * count)), count - 1)
    again = prepare(numbered(0, count), seed=seed, validation_split=share)
    assert labels_of(again.validation) == kept
    assert again.fingerprint == found.fingerprint


def test_the_fingerprint_follows_the_split_and_both_data_sets() -> None:
    found = [
        prepare(numbered(0, 9)),
        prepare(numbered(1, 9)),
        prepare(numbered(0, 9), validation_split=0.5),
        prepare(numbered(0, 9), validation_split=0.5, seed=6),
        prepare(numbered(0, 9), eval_dataset=numbered(0, 9)),
        prepare(numbered(0, 9), eval_dataset=numbered(0, 8)),
    ]
    assert len({each.fingerprint for each in found}) == len(found)
    # A seed decides nothing else.
    assert prepare(numbered(0, 9), seed=6).fingerprint == found[0].fingerprint


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


# Its sections.

SPEC = """
model: {model_type: tests.outsider.family}
data: {dataset: "my_data:make", args: {n: 3, ids: [a]}, eval_dataset: "my_data:E.make", collate_fn: "my:pad"}
task: {type: custom, loss: "my_data:loss", metrics: [accuracy, "my_data:f1"], label_names: [labels, spans]}
batch: {per_device_train_batch_size: 2}
max_steps: 4
"""


def test_sections_are_read_from_yaml_and_written_back() -> None:
    spec = parse_spec(SPEC)
    assert isinstance(spec.task, TaskSpec)
    assert isinstance(spec.data, DataSpec)
    assert (spec.task.loss, spec.task.metrics) == ("my_data:loss", ("accuracy", "my_data:f1"))
    assert spec.data.args == {"n": 3, "ids": ["a"]}
    assert parse_spec(spec.model_dump_json()) == spec
    assert TASKS.find("custom") is custom


def test_objects_are_written_by_their_names() -> None:
    spec: JobSpec = parse_spec(SPEC)
    task = spec.task.model_copy(update={"loss": own_loss, "metrics": ("accuracy", own_loss)})
    found = spec.model_copy(update={"task": task}).model_dump(mode="json")["task"]
    assert (found["loss"], found["metrics"]) == (f"{__name__}:own_loss", ["accuracy", f"{__name__}:own_loss"])


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
