"""What a job needs of a framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvdtrain.core.families.family import Family
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.adapter import Adapter
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.spec.sections import ModelSection


@dataclass(frozen=True)
class Framework:
    """A framework and how a job uses it.

    Attributes:
        name: `torch` or `tensorflow`.
        init: joins the job and returns its ranks.
        family: the model family of a spec's model.
        adapter: builds what computes a spec's updates on this rank, by its plan and the model's weights.
        shutdown: leaves the job in good order.
        packages: distributions whose versions must be the same on every rank, the framework's own first.
        wire_types: dtypes that Horovod's wire has beyond those of its releases, by NumPy's names.
    """

    name: str
    init: Callable[[JobSpec], Ranks]
    family: Callable[[ModelSection], Family]
    adapter: Callable[[JobSpec, Plan, tuple[Weight, ...]], Adapter]
    shutdown: Callable[[], None]
    packages: tuple[str, ...]
    wire_types: frozenset[str]
