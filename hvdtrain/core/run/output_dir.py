"""The directory that a run writes into: it holds one run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from hvdtrain.core import strict_json
from hvdtrain.core.checkpoints.finding import (
    AUTO,
    LATEST_FILE,
    Found,
    checkpoints_in,
    first_whole,
    is_ours,
    keys_in,
    left_behind,
    set_aside,
    step_of,
)
from hvdtrain.core.checkpoints.manifest import SPEC_FILE
from hvdtrain.core.checkpoints.model_folder import MODEL_DIR
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.process.files import remove, write_whole
from hvdtrain.core.process.outputs import say
from hvdtrain.core.run.lock import unwritable
from hvdtrain.core.run.metrics import METRICS_FILE, TENSORBOARD_DIR
from hvdtrain.core.spec.job_spec import JobSpec

PLAN_FILE, INITIAL_DIR = "plan.json", "initial"
RESTARTS_FILE = "restarts.jsonl"
# Shell patterns of what a run leaves beside its checkpoints.
_OF_A_RUN = (
    SPEC_FILE,
    PLAN_FILE,
    METRICS_FILE,
    "metrics.before-resume-*.jsonl",
    MODEL_DIR,
    INITIAL_DIR,
    TENSORBOARD_DIR,
    LATEST_FILE,
)


def check_output_dir(directory: Path, resume_from: Path | None, overwrite: bool) -> None:
    """Refuse a directory that holds another run, unless it is to be replaced.

    Args:
        directory: where rank 0 is to write.
        resume_from: the checkpoint to go on from; a run goes on in its own directory. `AUTO`: what is there
            decides (`check_begins_anew`).
        overwrite: whether the other run is deleted.

    Raises:
        CheckpointError: the directory holds another run, or the checkpoint would be deleted with it; or what
            `overwrite` is to delete is no run.
    """
    own = goes_on_in(directory, resume_from)
    if own and overwrite:
        raise CheckpointError(
            f"--output-dir {directory}: --overwrite would delete --resume {resume_from}: give one of the two"
        )
    found = next(iter(_left_by_a_run(directory)), None)
    if own or found is None:
        return
    if overwrite:
        if not _is_a_run(directory):
            raise CheckpointError(
                f"--output-dir {directory}: --overwrite deletes runs, and this is none: {found.name} is "
                f"there, but neither the {SPEC_FILE} of a job nor a checkpoint; give another --output-dir, "
                "or delete what is there yourself"
            )
        return
    what = f"--output-dir {directory}: holds another run ({found.name} is there)"
    if resume_from is not None:
        raise CheckpointError(
            f"{what} than that of --resume {resume_from}: give that run's own directory, one that holds no "
            "run, or --overwrite to delete the run that is there"
        )
    raise CheckpointError(
        f"{what}: give another --output-dir, --resume to go on from one of its checkpoint-N, or --overwrite "
        "to delete it"
    )


def check_begins_anew(directory: Path, spec: JobSpec) -> None:
    """Refuse a directory in which `AUTO` has found no checkpoint, unless it holds no run or one of this spec.

    Args:
        directory: where rank 0 is to write.
        spec: of the job.

    Raises:
        CheckpointError: the directory holds another run.
    """
    try:
        own = (directory / SPEC_FILE).read_bytes() == spec_text(spec).encode()
    except OSError:
        own = False
    if not own:
        check_output_dir(directory, None, overwrite=False)


def goes_on_in(directory: Path, resume_from: Path | None) -> bool:
    """Whether what a job goes on from lies in this output directory.

    Args:
        directory: where rank 0 is to write.
        resume_from: a `checkpoint-N`, `AUTO` or None.
    """
    if resume_from is None or resume_from == AUTO:
        return resume_from is not None
    return resume_from.resolve().parent == directory.resolve()


def newest_later(directory: Path, resume_from: Path | None, step: int) -> Found | None:
    """What `AUTO` finds where it is of a later step than this; else None.

    Args:
        directory: where rank 0 writes.
        resume_from: a `checkpoint-N`, `AUTO` or None.
        step: of what the job goes on from otherwise.
    """
    if resume_from != AUTO:
        return None
    later = (path for path in reversed(checkpoints_in(directory)) if step_of(path) > step)
    found = first_whole(later, lambda path, error: say(f"warning: {path.name} skipped: {error}"))
    if found:
        say(f"--resume auto: going on from {found[0]}, which is later than the newest snapshot")
    return found


def spec_text(spec: JobSpec) -> str:
    """What `spec.json` holds."""
    return spec.model_dump_json(indent=2) + "\n"


def begin_run(
    directory: Path, spec: JobSpec, plan: Plan, overwrite: bool, after_step: int | None = None
) -> None:
    """Write down what a run is about to do; called by rank 0 when nothing can be refused any more.

    Args:
        directory: made when it is missing.
        spec: the job.
        plan: made from it.
        overwrite: whether an older run is deleted first.
        after_step: of the run that is there, where this one goes on; checkpoints of later steps get other
            names, or they would be taken for those of this run.

    Raises:
        CheckpointError: the directory cannot be written.
    """
    try:
        for left in left_behind(directory):
            with suppress(OSError):
                # In the way of nobody, where it cannot be deleted.
                remove(left)
        if overwrite:
            _delete_run(directory)
        if after_step is not None:
            set_later_aside(directory, after_step)
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / SPEC_FILE, spec_text(spec))
        write_whole(directory / PLAN_FILE, strict_json.dumps(plan.as_dict(), indent=2) + "\n")
    except OSError as error:
        raise unwritable(directory, error) from None


def set_later_aside(directory: Path, after_step: int) -> None:
    """Give checkpoints of later steps other names, or they would be taken for those of a run that goes on.

    Args:
        directory: of the run.
        after_step: where it goes on.
    """
    for later in checkpoints_in(directory):
        if step_of(later) > after_step:
            place = later.with_name(f"{later.name}.before-resume-{after_step}")
            if place.exists():
                # Of a run that went on from there before.
                remove(place)
            later.rename(place)


def _delete_run(directory: Path) -> None:
    """Delete a run, its checkpoints first and its spec last: what a kill leaves of it is still its own."""
    # What `hvdtrain run` notes there may stand alone, for a job that has not come so far.
    for left in (*directory.glob(RESTARTS_FILE), *reversed(_left_by_a_run(directory))):
        remove(left)


def _is_a_run(directory: Path) -> bool:
    """Whether a job or a loop of hvdtrain wrote there: others, too, have a `model` or a `plan.json`."""
    of_a_job = keys_in(directory / SPEC_FILE) >= {"model", "data", "batch", "optimizer"}
    return of_a_job or any(map(is_ours, (*checkpoints_in(directory), *set_aside(directory))))


def _left_by_a_run(directory: Path) -> list[Path]:
    """What there is of a run, its spec first and its checkpoints last."""
    others = [path for pattern in _OF_A_RUN for path in sorted(directory.glob(pattern))]
    return [*others, *checkpoints_in(directory), *set_aside(directory)]
