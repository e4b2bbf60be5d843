"""Evaluating a model that a job has saved, alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.checkpoints.model_folder import load_model
from hvdtrain.core.checkpoints.saved_models import CONFIG_FILE
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.run.evaluation import count, measures_of
from hvdtrain.core.run.examination import examine
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.job import SPEC_FILE, open_run
from hvdtrain.core.spec.job_spec import JobSpec, parse_spec
from hvdtrain.core.tasks.classification import ClassMeasures

_MODEL_DIR = "model"
# Of a batch, where the job has left them to the number of its ranks.
_ROWS = 8
# Sections and fields of a spec that an evaluation does without: ranks may be others than those of the job.
_OF_TRAINING = (
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
    whole = (directory / SPEC_FILE).is_file()
    job, folder = (directory, directory / _MODEL_DIR) if whole else (directory.parent, directory)
    path = job / SPEC_FILE
    if not path.is_file():
        nothing = f"neither it nor the folder above holds {SPEC_FILE}"
        raise CheckpointError(
            f"OUTPUT_DIR {directory}: {nothing if directory.is_dir() else 'no such folder'}; give a job's "
            f"output directory, its {_MODEL_DIR}/ or a checkpoint-N/"
        )
    if not folder.is_dir():
        raise CheckpointError(f"OUTPUT_DIR {directory}: holds no {_MODEL_DIR}/: has the job ended?")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    # The model's own values are what is evaluated, and nothing is trained.
    found["model"]["init_from"] = None
    rows = found["evaluation"]["per_device_eval_batch_size"] or found["batch"]["per_device_train_batch_size"]
    found["batch"] = {"per_device_train_batch_size": rows or _ROWS}
    for name in _OF_TRAINING:
        found.pop(name, None)
    found |= {"max_steps": 1, "num_train_epochs": None}
    spec = parse_spec(json.dumps(found), where=str(path))
    if data:
        section = spec.data.evaluated_on(tuple(data), folder, _class_names(folder))
        spec = spec.model_copy(update={"data": section})
    return spec, folder


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
    split = run.dataset.validation
    if not len(split) and other_data:
        split = run.dataset.train
    if not len(split):
        raise SpecError("data: the job has no validation split; give files by --data")
    arrays = _read(folder, {w.name: w.shape for w in run.weights}) if ranks.is_chief else {}
    run.adapter.model.write(ranks.broadcast_arrays(arrays))
    examine(run)
    measures = measures_of(spec)
    sums = count(run, measures, split)
    metrics = {f"eval_{name}": mean for name, mean in measures.means(sums[:-1]).items()}
    metrics["eval_samples"] = int(sums[-1])
    if not isinstance(measures, ClassMeasures):
        return SavedEvaluation(metrics, (), np.zeros((0, 0), np.int64))
    names = tuple(run.dataset.config["id2label"].values())
    return SavedEvaluation(metrics, names, measures.confusion(sums[:-1]).astype(np.int64))


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: cannot be read: {error}") from None
    names: dict[str, str] = config.get("id2label", {})
    return tuple(names[number] for number in sorted(names, key=int))


def _read(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    arrays = load_model(folder)
    for name, shape in shapes.items():
        found = arrays[name].shape if name in arrays else None
        if found != shape:
            raise CheckpointError(
                f"{folder}: weight {name}: the spec's model has shape {shape}, found {found or 'none'}: "
                "model and spec.json are of two jobs"
            )
    return {name: arrays[name] for name in shapes}
