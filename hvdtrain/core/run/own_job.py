"""A job that a program of the user's starts, with the user's objects in the place of paths."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.data.values import kind_of
from hvdtrain.core.errors import CheckpointError, SpecError
from hvdtrain.core.process.ending import ends_the_job
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.process.paths import default_output_dir, user_path
from hvdtrain.core.process.preemption import heed_preemption
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.results import TrainingResult
from hvdtrain.core.run.script import join_and_train
from hvdtrain.core.spec.job_spec import JobSpec, parse_spec
from hvdtrain.core.spec.reading import read_spec

FRAMEWORKS = ("torch", "tensorflow")


@dataclass(frozen=True)
class OwnCode:
    """Arguments of `hvdtrain.train` that stand for fields of the spec; None: the spec's.

    Attributes:
        model: `model.torch` or `model.tensorflow`.
        train_dataset: `data.dataset`.
        eval_dataset: `data.eval_dataset`.
        collate_fn: `data.collate_fn`.
        loss: `task.loss`.
        metrics: `task.metrics`.
    """

    model: Callable[..., Any] | None = None
    train_dataset: Any = None
    eval_dataset: Any = None
    collate_fn: Callable[..., Any] | None = None
    loss: str | Callable[..., Any] | None = None
    metrics: Sequence[str | Callable[..., Any]] | None = None

    def check(self) -> None:
        """SpecError where an argument is nothing of its kind."""
        named: dict[str, Any] = {"loss": self.loss, "collate_fn": self.collate_fn}
        if self.metrics is not None:
            if isinstance(self.metrics, str) or not isinstance(self.metrics, Sequence):
                raise SpecError(f"metrics: expected a list of names and functions, found {self.metrics!r}")
            named |= {f"metrics[{i}]": metric for i, metric in enumerate(self.metrics)}
        for name, value in named.items():
            if value is not None and not isinstance(value, str) and not callable(value):
                raise SpecError(f"{name}: expected a name or a function, found {kind_of(value)}")

    def fields(self, framework: str) -> dict[str, dict[str, Any]]:
        """The arguments that are given, by section and field."""
        found = {
            "model": {framework: self.model},
            "data": {
                "dataset": self.train_dataset,
                "eval_dataset": self.eval_dataset,
                "collate_fn": self.collate_fn,
            },
            "task": {
                "loss": self.loss,
                "metrics": None if self.metrics is None else tuple(self.metrics),
            },
        }
        given = {
            section: {name: value for name, value in fields.items() if value is not None}
            for section, fields in found.items()
        }
        return {section: fields for section, fields in given.items() if fields}


def train_own(
    spec: str | Path | Mapping[str, Any],
    framework: str,
    code: OwnCode,
    output_dir: str | Path | None = None,
    resume_from: str | Path | None = None,
    *,
    overwrite: bool = False,
    allow_changes: Collection[str] = (),
) -> TrainingResult:
    """As `hvdtrain.train`."""
    with heed_preemption(), ends_the_job(raises=launched_rank() is None):
        if framework not in FRAMEWORKS:
            raise SpecError(f"framework: expected 'torch' or 'tensorflow', found {framework!r}")
        job = own_spec(spec, framework, code)
        named = spec if isinstance(spec, str | Path) else "own"
        place = user_path(output_dir or default_output_dir(named, framework), "output_dir", CheckpointError)
        checkpoint = resume_from and user_path(resume_from, "resume_from_checkpoint", CheckpointError)
        loaded: Framework = importlib.import_module(f"hvdtrain.{framework}.job").load()
        return join_and_train(
            loaded, job, place, checkpoint or None, overwrite=overwrite, allow_changes=allow_changes
        )
    raise AssertionError("unreachable")


def own_spec(spec: str | Path | Mapping[str, Any], framework: str, code: OwnCode) -> JobSpec:
    """A spec in which the user's objects stand where a YAML file has paths.

    Args:
        spec: a file, a packaged spec's name, or the sections as a mapping.
        framework: whose model the code is.
        code: the arguments.

    Raises:
        SpecError: the spec is bad, or it and an argument say the same thing.
    """
    if not isinstance(spec, Mapping | str | Path):
        raise SpecError(f"spec: expected a file, a packaged spec's name, or a mapping, found {kind_of(spec)}")
    raw = dict(spec) if isinstance(spec, Mapping) else read_spec(spec)
    code.check()
    fields = code.fields(framework)
    for section, given in fields.items():
        found = raw.get(section) or {}
        if not isinstance(found, Mapping):
            raise SpecError(f"{section}: expected a section, found {found!r}")
        for name in given.keys() & found.keys():
            raise SpecError(
                f"{section}.{name}: the spec says {found[name]!r}, and the program gives the argument "
                f"{_ARGUMENTS.get(name, name)} as well: leave one of them out"
            )
        # Names are checked with the rest of the spec; objects take their place afterwards.
        names = {name: value for name, value in given.items() if _is_text(value)}
        raw[section] = {**found, **names}
    if code.model is not None:
        kind = raw["model"].setdefault("model_type", "custom")
        if kind != "custom":
            raise SpecError(
                f"model: the spec's model section says model_type {kind!r}, and the program gives the "
                "argument model as well: leave one of them out"
            )
    job = parse_spec(_as_json(raw), where="spec" if isinstance(spec, Mapping) else str(spec))
    objects = {s: {n: v for n, v in given.items() if not _is_text(v)} for s, given in fields.items()}
    sections = {s: _replaced(getattr(job, s), s, given) for s, given in objects.items() if given}
    return job.model_copy(update=sections)


_ARGUMENTS = {"torch": "model", "tensorflow": "model", "dataset": "train_dataset"}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(v, str) for v in value))


def _replaced(section: Any, name: str, given: Mapping[str, Any]) -> Any:
    unknown = sorted(given.keys() - type(section).model_fields.keys())
    if unknown:
        raise SpecError(
            f"{name}: the argument {_ARGUMENTS.get(unknown[0], unknown[0])} is for the task custom, and this "
            f"spec has no field {name}.{unknown[0]}: give a model of your own, or leave it out"
        )
    return section.model_copy(update=dict(given))


def _as_json(raw: Mapping[str, Any]) -> str:
    return json.dumps(_plain({"data": {}, **raw}, ""))


def _plain(value: Any, place: str) -> Any:
    """A value of a spec as YAML would have given it: NumPy's numbers and paths are taken as what they are."""
    if isinstance(value, Mapping):
        return {str(k): _plain(each, f"{place}.{k}" if place else str(k)) for k, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{place}.{i}") for i, each in enumerate(value)]
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise SpecError(
        f"{place}: expected what YAML can hold, found {kind_of(value)}; give functions and objects as "
        "arguments of train, and what a model or a dataset is called with in a function of your own"
    )
