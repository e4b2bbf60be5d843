"""What every `zero_stage` of a job takes, side by side, and the largest model that fits with each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from hvdtrain.core.errors import SpecError
from hvdtrain.core.families.family import Family
from hvdtrain.core.families.weights import trained
from hvdtrain.core.plan.layout import lay_out_buckets
from hvdtrain.core.plan.memory import Memory, predict_memory
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.spec.job_spec import JobSpec

ZERO_STAGES: tuple[int, ...] = get_args(JobSpec.model_fields["zero_stage"].annotation)
# A power of 2. Nobody trains deeper models: where they fit, layers can be wider.
MOST_LAYERS = 1024
_MIB = 2**20


@dataclass(frozen=True)
class Stage:
    """What a job takes with one `zero_stage`.

    Attributes:
        parameters: trainable elements.
        memory: per rank.
        wire_bytes_per_update: bytes one rank hands to collectives in one update.
        layers: how many the largest model that fits has; None: the model is the spec's.
    """

    parameters: int
    memory: Memory
    wire_bytes_per_update: int
    layers: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The stage as JSON-ready values."""
        found = asdict(self)
        found["memory"]["total"] = self.memory.total
        return found


@dataclass(frozen=True)
class Stages:
    """What a job takes with each of some stages.

    Attributes:
        found: by stage; of one that the job cannot have, or in which not even one layer fits, the reason.
        available: bytes per rank that the model shall fit in; None: it is the spec's.
        varied: the field with the number of layers, of which as many are taken as fit; None: none is.
    """

    found: Mapping[int, Stage | str]
    available: int | None = None
    varied: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The stages as JSON-ready values."""
        stages = {
            str(stage): {"reason": found} if isinstance(found, str) else found.as_dict()
            for stage, found in self.found.items()
        }
        return {"available": self.available, "varied": self.varied, "stages": stages}


def compare_stages(
    spec: JobSpec,
    stages: Sequence[int],
    plan: Callable[[JobSpec], Plan],
    family: Family,
    available: int | None = None,
) -> Stages:
    """What a job takes with each of some stages.

    Args:
        spec: the job; its own stage is left aside.
        stages: those that are asked for.
        plan: makes the plan of a spec.
        family: the model's.
        available: bytes per rank. Where they are given, the model has as many layers as fit, up to
            `MOST_LAYERS`, and all else as the spec has it.

    Raises:
        SpecError: the job can have none of the stages, or the family has no number of layers to vary.
    """
    varied = None if available is None else getattr(family, "LAYERS", None)
    if available is not None and varied is None:
        raise SpecError(
            f"--fit varies the number of layers, and models of model_type {spec.model.model_type} have no "
            "field for it"
        )
    found: dict[int, Stage | str] = {}
    refusals: list[SpecError] = []
    for stage in stages:
        staged = spec.model_copy(update={"zero_stage": stage})
        try:
            planned = plan(staged)
        except SpecError as error:
            found[stage] = str(error)
            refusals.append(error)
        else:
            found[stage] = (
                Stage(planned.parameters, planned.memory, planned.wire_bytes_per_update)
                if available is None
                else _largest(staged, family, planned, available)
            )
    if len(refusals) == len(stages):
        raise refusals[0]
    return Stages(found, available, varied)


def _largest(spec: JobSpec, family: Any, plan: Plan, available: int) -> Stage | str:
    """The stage of the deepest model that fits, or why none does."""

    def of(layers: int) -> Stage:
        return _with_layers(spec, family, plan, layers)

    def total(layers: int) -> int:
        return of(layers).memory.total

    most = 1
    while most < MOST_LAYERS and total(most) <= available:
        most *= 2
    layers = bisect_right(range(1, most + 1), available, key=total)
    if layers:
        return of(layers)
    lacking = total(1) - available
    return f"one layer takes {total(1) / _MIB:.2f} MiB, and {lacking / _MIB:.2f} MiB of them are lacking"


def _with_layers(spec: JobSpec, family: Any, plan: Plan, layers: int) -> Stage:
    model = spec.model.model_copy(update={family.LAYERS: layers})
    varied = spec.model_copy(update={"model": model})
    weights = trained(family.weights(model))
    buckets = lay_out_buckets(varied, weights, plan.accumulation)
    batch, itemsize = plan.batch, np.dtype(model.dtype).itemsize
    return Stage(
        sum(weight.size for weight in weights),
        predict_memory(varied, family, buckets, batch, plan.size),
        varied.rules.wire_bytes(buckets, itemsize, plan.size, batch.gradient_accumulation_steps),
        layers,
    )
