"""A task of the user's own: where datasets come from, and what a batch weighs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.core.data import Batch
from hvdtrain.core.data.order import rank_share
from hvdtrain.core.spec.job_spec import JobSpec, parse_spec
from hvdtrain.core.tasks import TASKS, custom
from hvdtrain.core.tasks.custom import DataSpec, TaskSpec, make_batch
from tests.core.tasks.columns import COLUMNS, SPEC, N, X, Y, numbered, own_loss, prepare, said, with_loss

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
    assert (found["loss"], found["metrics"]) == (
        f"{own_loss.__module__}:own_loss",
        ["accuracy", f"{own_loss.__module__}:own_loss"],
    )
