"""What all ranks must have in common before the first update, and how they come to it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from hvdtrain.core.checkpoints.finding import Found
from hvdtrain.core.checkpoints.manifest import MANIFEST_FILE
from hvdtrain.core.data import Dataset
from hvdtrain.core.families.weights import Weight
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.run.agreement import agree
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.initial import set_initial_values
from hvdtrain.core.run.ranks import Ranks
from hvdtrain.core.run.resume import resume
from hvdtrain.core.run.run import Run
from hvdtrain.core.run.state import RunState
from hvdtrain.core.spec.job_spec import JobSpec
from hvdtrain.core.update.precision import LossScale

# What only says how quick one host is, or where it keeps its files.
_OF_ONE_HOST: Any = {"num_threads": True, "data": {"cache_dir": True}}
_PLANNED_BY_HOST = {"threads", "notes"}
_CHECKPOINT = "--resume's content"


def check_command(framework: Framework, ranks: Ranks, spec: JobSpec, resume_from: Path | None) -> None:
    """Compare with the other ranks what this one was started with, before anything that could hang.

    Args:
        framework: of this rank.
        ranks: all of the job, whatever their frameworks.
        spec: of this rank.
        resume_from: the checkpoint it is to go on from.

    Raises:
        TrainingError: on every rank alike, naming what differs, the ranks and their values.
    """
    versions = framework.versions
    fields: dict[str, Any] = {
        "framework": ", ".join(f"{name} {versions[name]}" for name in framework.packages),
        "hvdtrain": versions["hvdtrain"],
        "horovod": versions["horovod"],
        "Horovod's wire types": sorted(framework.wire_types),
        "reduces over MPI": ranks.world.mpi,
        **spec.model_dump(mode="json", exclude=_OF_ONE_HOST),
    }
    if resume_from is not None:
        content = _digest(resume_from)
        fields |= {"--resume": str(resume_from)} | ({_CHECKPOINT: content} if content else {})
    agree(
        fields,
        ranks.gather,
        "Start every rank with the same program, --spec, --set and --resume, and install the same versions "
        "on every host.",
        optional={_CHECKPOINT},
    )


def check_data(dataset: Dataset, ranks: Ranks) -> None:
    """Compare this node's data with that of the other nodes; otherwise as `check_command`."""
    if dataset.text is not None:
        advice = (
            "A node prepared other data than rank 0's (corpus, tokenizer or split differ; python-docs "
            "differs between Python versions): give every node the same files."
        )
    else:
        advice = (
            "Every rank needs the same samples in the same order: give every node the same files, sort what "
            "is listed from a folder, and give a fixed seed to whatever is random when the dataset is made."
        )
    agree({**dataset.facts, "the data's fingerprint": dataset.fingerprint}, ranks.gather, advice)


def check_model(weights: Sequence[Weight], ranks: Ranks) -> None:
    """Compare the weights and buffers of a user's model with the other ranks'; otherwise as `check_command`.

    Args:
        weights: this rank's, in the model's order.
        ranks: all of the job.
    """
    kinds = {w.name: f"{w.shape}{', not trained' * w.buffer}" for w in weights}
    agree(
        {"model": kinds},
        ranks.gather,
        "The code that builds the model must build the same one on every rank, whatever its random numbers: "
        "does it depend on the rank, on a file or on the data of its host?",
    )


def check_plan(plan: Plan, ranks: Ranks) -> None:
    """Compare what the ranks have made of their commands; otherwise as `check_command`."""
    planned = {name: value for name, value in plan.as_dict().items() if name not in _PLANNED_BY_HOST}
    agree(
        {"plan": planned},
        ranks.gather,
        "The plan follows from command, data and versions: is their code the same?",
    )


def start(
    run: Run,
    resume_from: Path | None,
    allow_changes: Collection[str] = (),
    verified: Found | None = None,
) -> RunState:
    """Give every rank the same weights: rank 0's initial ones, or those of a checkpoint.

    Args:
        run: on this rank.
        resume_from: a `checkpoint-N` directory that rank 0 can read, or `AUTO`.
        allow_changes: fields in which the spec may differ from that of the checkpoint's run.
        verified: as in `resume`.

    Returns:
        Where the run starts.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit the spec.
    """
    if resume_from is not None and (state := resume(run, resume_from, allow_changes, verified)):
        return state
    set_initial_values(run)
    return RunState(loss_scale=LossScale.of_spec(run.spec))


def _digest(directory: Path) -> str | None:
    """A hash of what a checkpoint holds; None where this rank does not see it, as only rank 0 has to."""
    if not directory.is_dir():
        return None
    found = hashlib.blake2b(digest_size=16)
    try:
        # A manifest has the hashes of the others, which rank 0 verifies.
        manifest = directory / MANIFEST_FILE
        files = [manifest] if manifest.is_file() else [f for f in directory.rglob("*") if f.is_file()]
        for file in sorted(files):
            found.update(f"{file.relative_to(directory)} {file.stat().st_size} ".encode())
            with file.open("rb") as opened:
                found.update(hashlib.file_digest(opened, "blake2b").digest())
    except OSError:
        # Whoever has to read it says why it cannot.
        return None
    return found.hexdigest()
