"""The directory that a run writes into: it holds one run, and one job at a time writes there."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from hvdtrain.core import strict_json
from hvdtrain.core.checkpoints.finding import AUTO, LATEST_FILE, checkpoints_in, left_behind, step_of
from hvdtrain.core.checkpoints.manifest import SPEC_FILE
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.plan.plan import Plan
from hvdtrain.core.process.files import remove, write_whole
from hvdtrain.core.run.metrics import METRICS_FILE, TENSORBOARD_DIR
from hvdtrain.core.spec.job_spec import JobSpec

PLAN_FILE, MODEL_DIR, INITIAL_DIR = "plan.json", "model", "initial"
LOCK_FILE, RESTARTS_FILE = ".lock", "restarts.jsonl"
# Shell patterns of all that a run leaves.
_OF_A_RUN = (
    SPEC_FILE,
    PLAN_FILE,
    METRICS_FILE,
    "metrics.before-resume-*.jsonl",
    MODEL_DIR,
    INITIAL_DIR,
    "checkpoint-[0-9]*",
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
        CheckpointError: the directory holds another run, or the checkpoint would be deleted with it.
    """
    own = goes_on_in(directory, resume_from)
    if own and overwrite:
        raise CheckpointError(
            f"--output-dir {directory}: --overwrite would delete --resume {resume_from}: give one of the two"
        )
    found = next(iter(_left_by_a_run(directory)), None)
    if own or overwrite or found is None:
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
        # What `hvdtrain run` notes there may stand alone, for a job that has not come so far.
        for left in (*_left_by_a_run(directory), *directory.glob(RESTARTS_FILE)) if overwrite else ():
            remove(left)
        for left in left_behind(directory):
            with suppress(OSError):
                # In the way of nobody, where it cannot be deleted.
                remove(left)
        for later in checkpoints_in(directory):
            if after_step is not None and step_of(later) > after_step:
                _set_aside(later, f"{later.name}.before-resume-{after_step}")
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / SPEC_FILE, spec_text(spec))
        write_whole(directory / PLAN_FILE, strict_json.dumps(plan.as_dict(), indent=2) + "\n")
    except OSError as error:
        raise _unwritable(directory, error) from None


@contextmanager
def locked(directory: Path, job: str | None = None) -> Iterator[None]:
    """Keep other jobs out of a directory; the kernel frees the lock when this process ends, however it ends.

    The file names the process that holds it. Nothing else is left of a job that ends before it writes.

    Args:
        directory: made when it is missing.
        job: its name, where its ranks may be started again: then rank 0 takes the lock from one that was
            there before, and is frozen or on a host that nobody can reach any more.

    Raises:
        CheckpointError: another job writes there, or the directory cannot be written.
    """
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _lock(directory, job)
    except OSError as error:
        raise _unwritable(directory, error) from None
    try:
        yield
    finally:
        with suppress(OSError):
            # Left where nothing can be written any more: the next holder takes it as it is.
            if _is_at(file, directory / LOCK_FILE):
                (directory / LOCK_FILE).unlink()
        file.close()
        if new:
            # It holds something where the job has come so far.
            with suppress(OSError):
                directory.rmdir()


def check_still_locked(directory: Path) -> None:
    """Refuse to go on where rank 0 of the same job has been started again, because this one was given up.

    Args:
        directory: that this process has locked.

    Raises:
        CheckpointError: naming the one that has the lock.
    """
    try:
        holder = _read_holder((directory / LOCK_FILE).read_bytes())
    except OSError:
        return
    if holder and (holder.get("host"), holder.get("pid")) != (socket.gethostname(), os.getpid()):
        raise CheckpointError(
            f"--output-dir {directory}: this job goes on elsewhere ({_describe(holder)}), and has given this "
            "rank up"
        )


def _lock(directory: Path, job: str | None) -> IO[bytes]:
    path = directory / LOCK_FILE
    while True:
        file = path.open("ab+", buffering=0)
        try:
            # Of this process alone: one by flock would live on in the workers it forks.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with file:
                file.seek(0)
                holder = _read_holder(file.read())
            if job is not None and holder.get("job") == job:
                path.unlink(missing_ok=True)
                continue
            raise CheckpointError(
                f"--output-dir {directory}: another job is writing there ({_describe(holder)}): wait for its "
                "end, or give another --output-dir"
            ) from None
        except OSError:
            # A file system without locks cannot keep two jobs apart; one alone needs none.
            break
        with suppress(FileNotFoundError):
            if _is_at(file, path):
                break
        # Its last holder has deleted it meanwhile.
        file.close()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "job": job}
    try:
        # What a killed job has left there says nothing any more.
        file.truncate(0)
        file.write(json.dumps(holder).encode())
    except OSError:
        path.unlink()
        file.close()
        raise
    return file


def _is_at(file: IO[bytes], path: Path) -> bool:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


def _read_holder(content: bytes) -> dict[str, object]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _describe(holder: dict[str, object]) -> str:
    if {"pid", "host", "started"} <= holder.keys():
        return f"process {holder['pid']} on host {holder['host']}, since {holder['started']}"
    return "it has just begun"


def _set_aside(checkpoint: Path, name: str) -> None:
    place = checkpoint.with_name(name)
    if place.exists():
        # Of a run that went on from there before.
        remove(place)
    checkpoint.rename(place)


def _left_by_a_run(directory: Path) -> list[Path]:
    return [path for pattern in _OF_A_RUN for path in sorted(directory.glob(pattern))]


def _unwritable(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"--output-dir {directory}: cannot be written: {error.strerror}")
