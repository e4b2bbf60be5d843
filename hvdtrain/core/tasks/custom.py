"""A task of the user's own: any dataset, with a loss that has a name here or is the user's function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainSerializer, WithJsonSchema, model_validator

from hvdtrain.core.data.batches import Batch, Dataset
from hvdtrain.core.data.content import fingerprint, look
from hvdtrain.core.data.corpus import split_members
from hvdtrain.core.data.order import Indices
from hvdtrain.core.data.own_datasets import OwnDataSpec, find_datasets
from hvdtrain.core.data.samples import Samples, open_samples
from hvdtrain.core.data.seeding import seed_generators
from hvdtrain.core.data.values import COLLATE, Arrays
from hvdtrain.core.data.workers import Workers
from hvdtrain.core.errors import DataError, SpecError
from hvdtrain.core.spec.reference import describe, name_or_path
from hvdtrain.core.spec.sections import TaskSection
from hvdtrain.core.tasks.task import Shapes
from hvdtrain.core.user_code import load_user

LOSSES = ("cross_entropy", "mse", "bce_with_logits")
METRICS = ("accuracy",)

_JSON = PlainSerializer(describe, return_type=str | None), WithJsonSchema({"type": "string"})


class TaskSpec(TaskSection):
    """A loss, metrics, and which arrays of a sample are labels.

    Attributes:
        loss: one of `LOSSES`, or the user's function.
        metrics: of `METRICS`, or the user's functions; an evaluation reports them.
        label_names: Hugging Face's word for the arrays that are no inputs.
        ignore_index: a label of `cross_entropy` that is not predicted.
    """

    type: Literal["custom"] = "custom"
    loss: Annotated[Any, name_or_path(LOSSES), *_JSON] = "cross_entropy"
    metrics: tuple[Annotated[Any, name_or_path(METRICS), *_JSON], ...] = ()
    label_names: tuple[str, ...] = ("labels",)
    ignore_index: int = -100

    @model_validator(mode="after")
    def _smooths_cross_entropy(self) -> TaskSpec:
        if self.label_smoothing and self.loss != "cross_entropy":
            raise ValueError(
                f"label_smoothing {self.label_smoothing:g} is for loss cross_entropy alone, and loss is "
                f"{describe(self.loss)}: leave it out, or smooth labels in the loss itself"
            )
        return self

    @property
    def metric_names(self) -> tuple[str, ...]:
        """As `TaskSection.metric_names`; a function's is its own name."""
        return tuple(str(describe(each)).rpartition(":")[2].rpartition(".")[2] for each in self.metrics)


class DataSpec(OwnDataSpec):
    """The user's datasets."""


def check(model: Any, data: DataSpec) -> None:
    """As `Task.check`: nothing is known of the user's model before it is built."""
    del model, data


def shapes(data: DataSpec, task: TaskSpec) -> Shapes:
    """Of one sample; what the user's model makes of it is not known."""
    del data, task
    return Shapes(length=1, predictions=1)


def summarise(mean_loss: float | None) -> dict[str, float | None]:
    """As `Task.summarise`: a loss of any kind has no perplexity."""
    del mean_loss
    return {}


def prepare(
    model: Any, data: DataSpec, task: TaskSpec, seed: int, announce: Callable[[str], None]
) -> Dataset:
    """As `Task.prepare`: make the user's datasets, start the workers, and look at a few samples.

    With workers, this process reads no sample, so that files which a dataset opens at its first sample are
    not shared by processes.
    """
    del model
    _check_metrics(task)
    train, evaluation, place = find_datasets(data, announce)
    if task.metrics and evaluation is None and not data.validation_split:
        announce("task.metrics: there is no dataset to evaluate on, so they are not computed")
    collate_fn = load_user(data.collate_fn, COLLATE)
    sources: tuple[Samples, ...] = (open_samples(train, "data.dataset", task.label_names, collate_fn),)
    if evaluation is not None:
        sources += (open_samples(evaluation, place, task.label_names, collate_fn),)
    workers = Workers(data.dataloader_num_workers, sources)
    seen = [look(workers, which, len(each)) for which, each in enumerate(sources)]
    facts: dict[str, Any] = dict(
        zip(("train_dataset", "eval_dataset"), (dict(each.facts) for each in seen), strict=False)
    )
    if data.validation_split:
        facts["validation_split"] = {"share": data.validation_split, "seed": seed}
    last = len(sources) - 1
    kept, apart = _members([len(each) for each in sources], data.validation_split, seed)
    check_arrays(seen[0].empty, task, "data.dataset")
    check_arrays(seen[last].empty, task, place)
    return Dataset(
        CustomSplit(workers, 0, kept, seen[0].empty, task, seed),
        CustomSplit(workers, last, apart, seen[last].empty, task, seed),
        fingerprint(facts),
        facts=facts,
    )


def _check_metrics(task: TaskSpec) -> None:
    names = task.metric_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(
            f"task.metrics: more than one is called {twice[0]}, and an evaluation reports them by name: give "
            "the functions different names"
        )


def check_arrays(arrays: Arrays, task: TaskSpec, field: str) -> None:
    """Compare the arrays of a batch with what the loss and the metrics take.

    Args:
        arrays: by name.
        task: the task section.
        field: the dataset's, for errors.

    Raises:
        DataError: the label is missing or of a wrong dtype, there is no input, or an input has a name that
            means something else in a batch.
    """
    names, label = ", ".join(map(repr, arrays)), _label(arrays, task)
    takes = [each for each in (task.loss, *task.metrics) if is_name(each)]
    if takes and label is None:
        raise DataError(
            f"{field}: {takes[0]} takes one label, and samples have {names}, where task.label_names is "
            f"{list(task.label_names)}; name the one that is the label in task.label_names"
        )
    if label is not None and task.loss == "cross_entropy" and arrays[label].dtype.kind not in "biu":
        raise DataError(
            f"{field}: cross_entropy takes integer labels, the numbers of classes, and {label!r} is "
            f"{arrays[label].dtype}; make them integers, or choose another task.loss"
        )
    inputs = [name for name in arrays if name != label]
    if not inputs:
        raise DataError(
            f"{field}: samples have {names} only, which is the label; expected an input beside it"
        )
    for name in {"targets", "loss_weights"} & {*inputs}:
        raise DataError(
            f"{field}: {name!r} cannot be the name of an input; rename it, or list it in task.label_names"
        )


@dataclass(frozen=True, eq=False)
class CustomSplit:
    """Samples of a user's dataset, as they come.

    Attributes:
        workers: which draw them.
        which: of the workers' datasets.
        members: its samples that belong to this split, int64.
        empty: a batch of none.
        task: the task section.
        seed: the job's.
    """

    workers: Workers[tuple[Samples, ...]]
    which: int
    members: Indices
    empty: Arrays
    task: TaskSpec
    seed: int

    def __len__(self) -> int:
        return len(self.members)

    @property
    def costs(self) -> NDArray[np.int64]:
        """1 each."""
        return np.ones(len(self), np.int64)

    @property
    def ahead(self) -> int:
        """As `DrawsAhead.ahead`."""
        return self.workers.ahead

    def start(self, indices: Indices, epoch: int, rows: int) -> Callable[[], Batch]:
        """As `DrawsAhead.start`; the batch as that of `collate`."""
        del rows
        if not len(indices):
            return partial(make_batch, self.empty, self.task)
        arrive = self.workers.start(draw, self.which, self.members[indices], self._key(epoch))
        return lambda: make_batch(arrive(), self.task)

    def collate(self, indices: Indices, epoch: int, rows: int) -> Batch:
        """As `Split.collate`, with len(indices) rows: a batch norm has to see real rows only.

        With workers, the global generators of Python, NumPy and PyTorch are seeded for each sample by (seed,
        epoch, sample), or by the first sample of those read at once. Without, they are left alone, since the
        thread that computes may draw from them as well.

        Returns:
            As `make_batch`.
        """
        return self.start(indices, epoch, rows)()

    def _key(self, epoch: int) -> tuple[int, ...] | None:
        return (self.seed, self.which, epoch) if self.workers.count else None


def draw(sources: tuple[Samples, ...], which: int, indices: Indices, key: tuple[int, ...] | None) -> Arrays:
    """As `Samples.draw` of one of several datasets, with the generators seeded by `key` and each sample."""
    samples = sources[which]
    return samples.draw(indices) if key is None else samples.draw(indices, partial(seed_generators, *key))


def make_batch(arrays: Arrays, task: TaskSpec) -> Batch:
    """Tell inputs from the label, and say what each prediction weighs.

    Args:
        arrays: by name, each (rows, ...).
        task: the task section.

    Returns:
        Targets are the array of the one label name, or int32 (rows, 0) where there is none or several; all
        other arrays are inputs. With a loss of `LOSSES`, each element of the targets is a prediction, except
        those equal to `ignore_index` with `cross_entropy`; loss weights have the shape of the targets, and by
        token are 1, by example 1 / number of predictions in the row; the weight counts predictions, or
        examples with one. With a function, loss weights are ones (rows,), and the weight counts rows.
    """
    rows, label = len(next(iter(arrays.values()))), _label(arrays, task)
    targets = np.zeros((rows, 0), np.int32) if label is None else arrays[label]
    valid = np.ones(targets.shape if is_name(task.loss) else rows, dtype=bool)
    if task.loss == "cross_entropy":
        valid = targets != task.ignore_index
    predictions = valid.reshape(rows, -1).sum(axis=1) if rows else np.zeros(0, np.int64)
    by_token = task.normalize == "token"
    share = np.ones(rows) if by_token else 1.0 / np.maximum(predictions, 1)
    return Batch(
        inputs={name: array for name, array in arrays.items() if name != label},
        targets=targets,
        loss_weights=np.where(valid, share.reshape(rows, *[1] * (valid.ndim - 1)), 0.0),
        weight=float(predictions.sum() if by_token else np.count_nonzero(predictions)),
        counts={"tokens": rows, "samples": rows},
    )


def _label(arrays: Arrays, task: TaskSpec) -> str | None:
    return task.label_names[0] if len(task.label_names) == 1 and task.label_names[0] in arrays else None


def is_name(reference: Any) -> bool:
    """Whether it names a loss or a metric of this package, and is no function of the user's."""
    return isinstance(reference, str) and reference in (*LOSSES, *METRICS)


def _members(lengths: Sequence[int], validation_split: float, seed: int) -> tuple[Indices, Indices]:
    """Which samples of the first dataset train, and which of the last one evaluate."""
    if len(lengths) > 1:
        return np.arange(lengths[0]), np.arange(lengths[1])
    if validation_split and lengths[0] < 2:
        raise DataError(
            f"data.validation_split {validation_split}: data.dataset has {lengths[0]} sample, too few for "
            "both parts; set validation_split: 0"
        )
    return split_members(lengths[0], validation_split, seed)
