"""The job spec: one YAML file that trains the same way in either framework."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from hvdtrain.core.compression import OTHERS, POLICIES, Compression, NoCompression, field_type
from hvdtrain.core.compression.periodic import Periodic
from hvdtrain.core.compression.rules import Rules
from hvdtrain.core.errors import SpecError
from hvdtrain.core.families import FAMILIES, family_of
from hvdtrain.core.spec import sections
from hvdtrain.core.spec.checkpointing import CheckpointingSpec, check_best
from hvdtrain.core.spec.optimizer_sections import OptimizerSpec, ScheduleSpec
from hvdtrain.core.spec.pretrained import with_pretrained
from hvdtrain.core.spec.problems import models_of, problems
from hvdtrain.core.spec.reading import apply_override, mapping, read_spec
from hvdtrain.core.tasks import TASKS, task_of
from hvdtrain.core.tasks.measures import measures_of


class JobSpec(sections.Section):
    """Everything a run is made of, whatever the framework and the number of ranks.

    `model`, `data` and `task` have the sections of the family and the task: see `spec_class`.
    """

    model: sections.ModelSection
    data: sections.DataSection
    task: sections.TaskSection
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    batch: sections.BatchSpec
    max_steps: sections.Count | None = None
    num_train_epochs: Annotated[float, Field(gt=0.0)] | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    loss_scale: sections.LossScaleSpec = sections.LossScaleSpec()
    max_skipped_updates: sections.Count = 50
    compression: Compression = NoCompression()
    communication: sections.CommunicationSpec = sections.CommunicationSpec()
    gradient_checkpointing: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    max_grad_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    num_threads: sections.Count | None = None
    evaluation: sections.EvaluationSpec = sections.EvaluationSpec()
    checkpointing: CheckpointingSpec = CheckpointingSpec()
    logging: sections.LoggingSpec = sections.LoggingSpec()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @property
    def rules(self) -> Rules:
        """Which compression policy sums which weights."""
        return Rules.of_spec(
            self.compression, self.zero_stage, sections.PRODUCT_DTYPES.get(self.mixed_precision)
        )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _no_is_no(cls, found: object) -> object:
        # YAML 1.1 read an unquoted no as false, and some write it so.
        return "no" if found is False else found

    @field_validator("compression")
    @classmethod
    def _something(cls, found: Compression) -> Compression:
        if found == ():
            raise ValueError("an empty list; give its entries, or {type: none}")
        return found

    @model_validator(mode="after")
    def _consistent(self) -> JobSpec:
        if (self.max_steps is None) == (self.num_train_epochs is None):
            raise ValueError(
                "give either max_steps or num_train_epochs, not both and not neither; where a spec has the "
                "other one, set that to null"
            )
        takes_momentum = self.optimizer.type in ("sgd", "lars") and self.optimizer.momentum > 0.0
        if takes_momentum and self.rules.correct_momentum:
            raise ValueError(
                f"optimizer.momentum {self.optimizer.momentum}: compression takes momentum before it "
                "selects, and it would be taken twice; set optimizer.momentum or compression.momentum to 0"
            )
        if self.mixed_precision != "no" and self.model.dtype != "float32":
            raise ValueError(
                f"mixed_precision {self.mixed_precision} keeps weights in float32, and model.dtype is "
                f"{self.model.dtype}: set model.dtype: float32 or mixed_precision: no"
            )
        if self.gradient_checkpointing and not hasattr(family_of(self.model), "checkpointed_bytes"):
            raise ValueError(
                f"gradient_checkpointing: model_type {self.model.model_type} has no layers that can be "
                "computed again: leave it out; a model of your own calls torch.utils.checkpoint or "
                "keras.remat itself"
            )
        alone = next((p.type for p in self.rules.policies if isinstance(p, Periodic)), None)
        if alone and self.model.needs_all_ranks:
            raise ValueError(
                f"model.sync_batch_norm: true has ranks share the statistics of every micro-batch, and with "
                f"compression {alone} each takes updates alone: set model.sync_batch_norm: false, or choose "
                "another compression"
            )
        task_of(self.task).check(self.model, self.data)
        check_best(self.checkpointing, self.evaluation, measures_of(self.task, self.model).names)
        return self


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> JobSpec:
    """Read, override and validate a job spec.

    Args:
        path: a YAML file, or the name of a packaged spec such as `bert`.
        overrides: `field.path=value` texts; each value is read as YAML.

    Returns:
        The frozen spec.

    Raises:
        SpecError: naming every bad field, its value, what was expected and the nearest valid name.
    """
    return _validate(read_spec(path), overrides, where=str(path))


def parse_spec(text: str, overrides: Sequence[str] = (), where: str = "spec") -> JobSpec:
    """Validate a job spec given as YAML text; arguments and errors as `load_spec`."""
    return _validate(mapping(text, where), overrides, where)


def _validate(raw: dict[str, Any], overrides: Sequence[str], where: str) -> JobSpec:
    for override in overrides:
        apply_override(raw, override)
    found = with_pretrained(_without_empty_sections(raw))
    try:
        kind = spec_class(*_types(found))
    except SpecError as error:
        raise SpecError(f"{where}: 1 problem(s)\n  {error}") from None
    try:
        return kind.model_validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        lines = problems(error, kind)
        raise SpecError(
            f"{where}: {len(lines)} problem(s)\n" + "\n".join(f"  {line}" for line in lines)
        ) from None


def spec_class(
    model_type: str = "bert", task_type: str | None = None, compression: Collection[str] = ()
) -> type[JobSpec]:
    """The class of specs for a family and a task.

    Args:
        model_type: the family.
        task_type: the task; None: the family's first.
        compression: types of policies; those of this package need not be named.

    Raises:
        SpecError: there is no such family, task or policy, or the family is not trained for the task.
    """
    family = FAMILIES.find(model_type)
    task_name = task_type or family.TASKS[0]
    TASKS.find(task_name)
    if task_name not in family.TASKS and task_type in TASKS.builtin and model_type in FAMILIES.builtin:
        raise SpecError(
            f"task.type: model_type {model_type} is trained for {', '.join(map(repr, family.TASKS))} "
            f"(found {task_name!r})"
        )
    others = sorted({name for name in compression if name not in OTHERS.builtin})
    return _spec_class(model_type, task_name, tuple(others))


@cache
def _spec_class(model_type: str, task_type: str, policies: tuple[str, ...]) -> type[JobSpec]:
    task = TASKS.find(task_type)
    task_section = _named(task.TaskSpec, "type", task_type)
    try:
        default: Any = task_section()
    except ValidationError:
        default = ...
    more = tuple(_named(OTHERS.find(name), "type", name) for name in policies)
    fields: Any = {
        "model": (_named(FAMILIES.find(model_type).ModelSpec, "model_type", model_type), ...),
        "data": (task.DataSpec, ...),
        "task": (task_section, default),
        **({"compression": (field_type((*POLICIES, *more)), NoCompression())} if more else {}),
    }
    return create_model("JobSpec", __base__=JobSpec, __module__=__name__, **fields)


def _named(section: Any, field: str, name: str) -> Any:
    """A section whose type has the name that the spec gives it, which may be a path."""
    if section.model_fields[field].default == name:
        return section
    fields: Any = {field: (Literal[name], name)}
    return create_model(section.__name__, __base__=section, **fields)


def json_schema() -> dict[str, Any]:
    """The spec's JSON schema, for editors that complete and check YAML; it has all families and tasks."""
    families, tasks = ([kinds.find(name) for name in kinds.builtin] for kinds in (FAMILIES, TASKS))
    fields: Any = {
        "model": (_one_of([family.ModelSpec for family in families], "model_type"), ...),
        "data": (_one_of([task.DataSpec for task in tasks]), ...),
        "task": (_one_of([task.TaskSpec for task in tasks], "type"), None),
    }
    return create_model("JobSpec", __base__=JobSpec, **fields).model_json_schema()


def _one_of(kinds: Sequence[Any], discriminator: str | None = None) -> Any:
    found = functools.reduce(operator.or_, kinds)
    return Annotated[found, Field(discriminator=discriminator)] if discriminator else found


def _types(raw: Mapping[str, Any]) -> tuple[str, str | None, list[str]]:
    """The family, the task and the policies that a spec names; what is no name is left to validation.

    A model section that names the user's code is of the family `custom`.
    """
    policies, model = raw.get("compression"), raw.get("model")
    own = isinstance(model, dict) and not model.keys().isdisjoint(("torch", "tensorflow"))
    found = [_text(entry, "type") for entry in (policies if isinstance(policies, list) else [policies])]
    return (
        _text(model, "model_type") or ("custom" if own else "bert"),
        _text(raw.get("task"), "type"),
        [name for name in found if name and (":" in name or "." in name or name in OTHERS.installed())],
    )


def _text(section: Any, field: str) -> str | None:
    found = section.get(field) if isinstance(section, dict) else None
    return found if isinstance(found, str) else None


def _without_empty_sections(raw: dict[str, Any]) -> dict[str, Any]:
    """A section whose lines are all commented out is null in YAML; it takes its defaults."""
    found = dict(raw)
    for name, field in JobSpec.model_fields.items():
        if name in raw and raw[name] is None and models_of(field.annotation):
            del found[name]
            if field.is_required():
                found[name] = {}
    return found
