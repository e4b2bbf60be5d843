"""Evaluating a model that a job has saved, alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.checkpoints.finding import checkpoints_in
from hvdtrain.core.checkpoints.manifest import SPEC_FILE
from hvdtrain.core.checkpoints.model_folder import MODEL_DIR, load_model
from hvdtrain.core.checkpoints.saved_models import CONFIG_FILE
from hvdtrain.core.data.labels import names_in
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.run.evaluation import count, report
from hvdtrain.core.run.examination import examine
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.job import open_run
from hvdtrain.core.run.output_dir import PLAN_FILE
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.streams import set_weights
from hvdtrain.core.spec.job_spec import JobSpec, parse_spec
from hvdtrain.core.tasks.classification import ClassMeasures
from hvdtrain.core.tasks.measures import measures_of

# Of a batch, where the job has left them to the number of its ranks.
_ROWS = 8
# Sections and fields of a spec that an evaluation does without: ranks may be others than those of the job.
_OF_TRAINING = (
    "checkpointing",
    "compression",
    "schedule",
    "optimizer",
    "communication",
    "gradient_checkpointing",
    "zero_stage",
)


@dataclass(frozen=True, eq=False)
class SavedEvaluation:
    """What an evaluation has found.

    Attributes:
        metrics: by the names that a line of metrics.jsonl has.
        classes: names of the classes; empty where the task has none.
        confusion: how often a class (row) was taken for another (column), int64 (classes, classes).
    """

    metrics: dict[str, float | None]
    classes: tuple[str, ...]
    confusion: np.ndarray

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; the classes and the confusion matrix only where there are any."""
        if not self.classes:
            return dict(self.metrics)
        return {**self.metrics, "classes": list(self.classes), "confusion_matrix": self.confusion.tolist()}


def read_job(directory: Path, data: Sequence[str] = ()) -> tuple[JobSpec, Path]:
    """The spec of a job, and the folder of its model.

    Args:
        directory: the job's output directory, its `model` or one of its `checkpoint-N`.
        data: files to evaluate on, as `data.files` names them; empty: the job's validation split.

    Returns:
        The spec, with that data, and the folder.

    Raises:
        CheckpointError: there is no such job, or no model in it.
        SpecError: the task's data cannot be given so.
    """
    # A checkpoint has the spec as well.
    whole = (directory / SPEC_FILE).is_file() and not (directory / CONFIG_FILE).is_file()
    job, folder = (directory, directory / MODEL_DIR) if whole else (directory.parent, directory)
    path = job / SPEC_FILE
    if not path.is_file():
        nothing = f"neither it nor the folder above holds {SPEC_FILE}"
        raise CheckpointError(
            f"OUTPUT_DIR {directory}: {nothing if directory.is_dir() else 'no such folder'}; give a job's "
            f"output directory, its {MODEL_DIR}/ or a checkpoint-N/"
        )
    if not folder.is_dir():
        raise CheckpointError(f"OUTPUT_DIR {directory}: {_without_model(directory)}")
    spec = parse_spec(json.dumps(_for_evaluation(path)), where=str(path))
    section = spec.data.evaluated_on(tuple(data), folder, _class_names(folder))
    return spec.model_copy(update={"data": section}), folder


def evaluate_saved(
    framework: Framework, spec: JobSpec, folder: Path, other_data: bool = False
) -> SavedEvaluation:
    """Evaluate a saved model on a spec's validation split; every rank of a job calls it.

    Args:
        framework: which computes.
        spec: from `read_job`.
        folder: of the model.
        other_data: whether the data was given to `read_job`: without a validation split it is all used.

    Raises:
        CheckpointError: the folder's weights cannot be read, or are not the spec's model's.
        SpecError: there is nothing to evaluate on.
    """
    spec.rules.check_wire(framework.wire_types)
    ranks = framework.init(spec)
    run = open_run(framework, ranks, spec, folder.parent)
    if not other_data:
        _check_unchanged(run, folder.parent)
    split = run.dataset.validation
    if not len(split) and other_data:
        split = run.dataset.train
    if not len(split):
        raise SpecError("data: the job has no validation split; give files by --data")
    arrays = _open(folder, run.weights) if ranks.is_chief else {}
    set_weights(run, lambda weight: arrays[weight.name])
    examine(run)
    measures = measures_of(spec.task, spec.model)
    sums = count(run, measures, split)
    metrics = report(measures, sums)
    if not isinstance(measures, ClassMeasures):
        return SavedEvaluation(metrics, (), np.zeros((0, 0), np.int64))
    names = names_in(run.dataset.config)
    return SavedEvaluation(metrics, names, measures.confusion(sums[:-1]).astype(np.int64))


def _without_model(directory: Path) -> str:
    if directory.is_file():
        return f"is a file; give a job's output directory, its {MODEL_DIR}/ or a checkpoint-N/"
    found = checkpoints_in(directory)
    if not found:
        return f"holds no {MODEL_DIR}/: the job has not ended, and has saved no checkpoint"
    return f"holds no {MODEL_DIR}/, since the job has not ended; its newest checkpoint is {found[-1]}"


def _for_evaluation(path: Path) -> dict[str, Any]:
    """The content of a `spec.json`, without what is for training alone."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        # The model's own values are what is evaluated.
        found["model"]["init_from"] = None
        rows = found["evaluation"]["per_device_eval_batch_size"]
        rows = rows or found["batch"]["per_device_train_batch_size"] or _ROWS
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{path}: is not what a job has written; give another output directory"
        ) from None
    found["batch"] = {"per_device_train_batch_size": rows}
    for name in _OF_TRAINING:
        found.pop(name, None)
    return {**found, "max_steps": 1, "num_train_epochs": None}


def _check_unchanged(run: Run, job: Path) -> None:
    """Refuse data of another size than that of the job, whose split would be another one."""
    try:
        plan = json.loads((job / PLAN_FILE).read_text(encoding="utf-8"))
        before = plan["train_samples"], plan["validation_samples"]
    except (OSError, ValueError, KeyError, TypeError):
        # A job's model may have been copied without it.
        return
    now = len(run.dataset.train), len(run.dataset.validation)
    if now != before:
        raise CheckpointError(
            f"data: the job had {before[0]} samples to train on and {before[1]} to evaluate on, and now "
            f"there are {now[0]} and {now[1]}: its data has changed since. Give files by --data"
        )


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        return names_in(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: cannot be read: {error}") from None


def _open(folder: Path, weights: Sequence[Weight]) -> Mapping[str, np.ndarray]:
    arrays = load_model(folder)
    for weight in weights:
        found = arrays.shapes.get(weight.name)
        if found != weight.shape:
            raise CheckpointError(
                f"{folder}: weight {weight.name}: the spec's model has shape {weight.shape}, found "
                f"{found or 'none'}: model and spec.json are of two jobs"
            )
    return arrays
