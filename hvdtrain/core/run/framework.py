"""What a job needs of a framework."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import hvdtrain
from hvdtrain.core.data.batches import Batch
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.adapter import Adapter
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.spec.job_spec import JobSpec


@dataclass(frozen=True)
class Framework:
    """A framework and how a job uses it.

    Attributes:
        name: `torch` or `tensorflow`.
        init: joins the job and returns its ranks.
        network: builds a user's model; a batch of one sample tells it the shapes of its inputs.
        adapter: builds what computes a spec's updates on this rank, by its plan, the model's weights and the
            network of a user's model.
        shutdown: leaves the job in good order.
        packages: distributions whose versions must be the same on every rank, the framework's own first.
        wire_types: dtypes that Horovod's wire has beyond those of its releases, by NumPy's names.
    """

    name: str
    init: Callable[[JobSpec], Ranks]
    network: Callable[[JobSpec, Batch], Any]
    adapter: Callable[[JobSpec, Plan, tuple[Weight, ...], Any], Adapter]
    shutdown: Callable[[], None]
    packages: tuple[str, ...]
    wire_types: frozenset[str]

    @cached_property
    def versions(self) -> dict[str, str]:
        """Of Python, this package, Horovod and the framework's packages, by name."""
        return versions_of(*self.packages)


def versions_of(*packages: str) -> dict[str, str]:
    """Versions of Python, this package, Horovod and some packages, by name."""
    found = {name: _version(name) for name in ("horovod", *packages)}
    return {"python": platform.python_version(), "hvdtrain": hvdtrain.__version__, **found}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
