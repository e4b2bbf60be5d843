"""Tasks: how samples become batches, one file a task."""

from __future__ import annotations

from hvdtrain.core.registry import Registry
from hvdtrain.core.spec.sections import TaskSection
from hvdtrain.core.tasks.task import Task

TASKS = Registry(
    "task.type",
    "hvdtrain.tasks",
    {
        "masked_lm": "hvdtrain.core.tasks.masked_lm",
        "causal_lm": "hvdtrain.core.tasks.causal_lm",
        "image_classification": "hvdtrain.core.tasks.image_classification",
        "text_classification": "hvdtrain.core.tasks.text_classification",
        "custom": "hvdtrain.core.tasks.custom",
    },
)


def task_of(task: TaskSection) -> Task:
    """The task of a spec's task section."""
    found: Task = TASKS.find(task.type)
    return found
