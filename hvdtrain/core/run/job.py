"""A job on ranks that have been joined: prepare, plan, train, and say what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hvdtrain.core.checkpoints.finding import AUTO
from hvdtrain.core.checkpoints.model_folder import MODEL_DIR
from hvdtrain.core.data import Dataset
from hvdtrain.core.families import custom, family_of
from hvdtrain.core.families.family import Family
from hvdtrain.core.families.weights import trained
from hvdtrain.core.plan.plan import Plan, make_plan
from hvdtrain.core.plan.table import print_plan
from hvdtrain.core.process.host import cpu_flags
from hvdtrain.core.process.outputs import say
from hvdtrain.core.process.preemption import requests_wait
from hvdtrain.core.run.examination import examine
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.initial import save_initial_values
from hvdtrain.core.run.lock import locked
from hvdtrain.core.run.metrics import METRICS_FILE
from hvdtrain.core.run.output_dir import (
    begin_run,
    check_begins_anew,
    check_output_dir,
    goes_on_in,
    newest_later,
)
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.results import TrainingResult, describe_result
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.snapshots import SnapshotOptions, Snapshots
from hvdtrain.core.run.start import check_command, check_data, check_model, check_plan, start
from hvdtrain.core.run.state import RunState
from hvdtrain.core.run.training import train
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.tasks import task_of


def prepare_data(spec: JobSpec, announce: Callable[[str], None]) -> Dataset:
    """Prepare a spec's data on this node, or open what was prepared before."""
    return task_of(spec.task).prepare(spec.model, spec.data, spec.task, spec.seed, announce)


def open_family(framework: Framework, spec: JobSpec, dataset: Dataset) -> tuple[Family, Any]:
    """The family of a spec's model; a user's model is built, and comes beside it.

    Args:
        framework: which builds it.
        spec: the job.
        dataset: the prepared data.

    Returns:
        The family, and the built network or None.

    Raises:
        SpecError: the user's model cannot be built, or not trained.
    """
    if not isinstance(spec.model, custom.ModelSpec):
        return family_of(spec.model), None
    network = framework.network(spec, dataset.train.collate(np.arange(1), 0, 1))
    return custom.BuiltFamily(network), network


def plan_job(spec: JobSpec, family: Family, dataset: Dataset, size: int, threads: int) -> Plan:
    """The plan of a spec whose data is prepared."""
    return make_plan(
        spec,
        trained(family.weights(spec.model)),
        size=size,
        threads=threads,
        train_tokens=dataset.train.costs,
        validation_samples=len(dataset.validation),
        family=family,
        cpu_flags=cpu_flags(),
        text=dataset.text,
    )


def train_spec(
    framework: Framework,
    ranks: Ranks,
    spec: JobSpec,
    output_dir: Path,
    resume_from: Path | None = None,
    *,
    overwrite: bool = False,
    allow_changes: Collection[str] = (),
    snapshots: SnapshotOptions | None = None,
) -> TrainingResult:
    """Train a spec on this rank of a job that has been joined.

    Nothing in the output directory is changed before all that could be refused has been accepted.

    Args:
        framework: of this rank.
        ranks: what its `init` returned.
        spec: the job.
        output_dir: where rank 0 writes.
        resume_from: a `checkpoint-N` directory to go on from, of either framework; `AUTO`: the newest whole
            one of the output directory, if there is one.
        overwrite: whether a run that the output directory holds is deleted.
        allow_changes: fields of the spec in which it may differ from that of the run that goes on.
        snapshots: of an elastic job; where some rank holds one, the run goes on from it, unless `AUTO` finds
            a checkpoint of a later step.

    Returns:
        What was produced; rank 0 has said it too.

    Raises:
        CheckpointError: the output directory holds another run or is in use, or the checkpoint does not fit.
        TrainingError: ranks differ in what they were started with, or in what they have made of it.
        Preempted: ranks were told to stop before the last update; the checkpoint is there.
    """
    with ExitStack() as stack:
        if ranks.is_chief:
            stack.enter_context(locked(output_dir, job=snapshots.job if snapshots else None))
        held = stack.enter_context(Snapshots(snapshots, ranks)) if snapshots else None
        find_later = partial(newest_later, output_dir, resume_from)
        snapshot, verified = held.newest(find_later) if held else (None, None)
        if ranks.is_chief:
            if snapshot:
                # The job has begun, so what is there is its own, or was never on this host.
                check_begins_anew(output_dir, spec)
            else:
                check_output_dir(output_dir, resume_from, overwrite)
        # Ranks that hold no snapshot cannot say what is in it.
        given = None if snapshot else resume_from
        run = open_run(framework, ranks, spec, output_dir, given, snapshots.every if snapshots else None)
        state = start(run, snapshot or resume_from, allow_changes, verified)
        examine(run)
        if state.step >= run.plan.max_steps:
            return _nothing_to_do(run, state)
        # A signal waits until the run has begun: the directory then holds a run that can be resumed.
        with requests_wait():
            chosen = snapshot or (resume_from not in (None, AUTO) and goes_on_in(output_dir, resume_from))
            _begin(run, state, overwrite and not snapshot, state.step if chosen else None)
            result = train(run, state, held)
        if held:
            held.delete()
    if ranks.is_chief:
        where = f"model in {result.model_dir}, metrics in {output_dir / METRICS_FILE}"
        say(f"done: {describe_result(result, run.plan)}; {where}")
    return result


def open_run(
    framework: Framework,
    ranks: Ranks,
    spec: JobSpec,
    output_dir: Path,
    resume_from: Path | None = None,
    snapshot_steps: int | None = None,
) -> Run:
    """Prepare the data and build the model on this rank; every rank calls it, and they agree on all of it.

    Args:
        framework: of this rank.
        ranks: what its `init` returned.
        spec: the job.
        output_dir: of the run.
        resume_from: the checkpoint that the run goes on from.
        snapshot_steps: updates from one snapshot to the next; None: there are none.

    Returns:
        The run; the model's weights are arbitrary.

    Raises:
        TrainingError: ranks differ in what they were started with, or in what they have made of it.
    """
    world = ranks.world
    check_command(framework, ranks, spec, resume_from)
    dataset = prepare_data(spec, announce=say if world.local_rank == 0 else _keep_silent)
    check_data(dataset, ranks)
    family, network = open_family(framework, spec, dataset)
    weights = family.weights(spec.model)
    if network is not None:
        check_model(weights, ranks)
    spec.rules.check_ranks(world.size, world.mpi)
    plan = plan_job(spec, family, dataset, world.size, world.threads(spec.num_threads))
    check_plan(plan, ranks)
    adapter = framework.adapter(spec, plan, weights, network)
    parts = spec, plan, ranks, dataset, family, weights, adapter, output_dir, framework
    return Run(*parts, snapshot_steps)


def _begin(run: Run, state: RunState, overwrite: bool, after_step: int | None) -> None:
    """Write down and say what the run is about to do; every rank calls it, and no rank refuses any more."""
    # Nobody comes here whom another rank does not follow.
    run.ranks.sum(np.zeros(1))
    if run.ranks.is_chief:
        begin_run(run.output_dir, run.spec, run.plan, overwrite, after_step)
        print_plan(run.plan, f"{run.framework.name}: what this run will do", run.framework.name)
    if not state.windows:
        save_initial_values(run)


def _nothing_to_do(run: Run, state: RunState) -> TrainingResult:
    if run.ranks.is_chief:
        say(
            f"nothing to do: the checkpoint is of update {state.step}, and max_steps is {run.plan.max_steps}"
            "; everything is left as it is. Give more max_steps to train on"
        )
    return TrainingResult(state, math.nan, None, run.output_dir / MODEL_DIR, 0.0)


def _keep_silent(text: str) -> None:
    del text
