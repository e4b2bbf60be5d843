"""What a job script does in either framework: read its options, join the job, and train."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.ending import ends_the_job
from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.process.orphans import end_with_launcher
from hvdtrain.core.process.outputs import outlast_readers
from hvdtrain.core.process.paths import default_output_dir, user_path
from hvdtrain.core.process.preemption import Preempted, heed_preemption
from hvdtrain.core.run.arguments import parse_arguments
from hvdtrain.core.run.framework import Framework
from hvdtrain.core.run.job import train_spec
from hvdtrain.core.run.results import TrainingResult
from hvdtrain.core.run.snapshots import SnapshotOptions
from hvdtrain.core.spec.job_spec import JobSpec, load_spec


def run_job(load: Callable[[], Framework], default_spec: str, arguments: Sequence[str] | None = None) -> None:
    """Run a job script on this rank; a failure shows its rank and ends the process at once.

    Args:
        load: imports the adapter; called after the spec is known to be good.
        default_spec: the spec without `--spec`: a file or a packaged spec's name.
        arguments: command-line arguments, those of the process by default.
    """
    outlast_readers()
    if launched_rank() is not None:
        end_with_launcher()
    with heed_preemption(), ends_the_job():
        _run(load, default_spec, arguments)


def join_and_train(
    framework: Framework,
    spec: JobSpec,
    output_dir: Path,
    resume_from: Path | None,
    *,
    overwrite: bool = False,
    allow_changes: Collection[str] = (),
    snapshots: SnapshotOptions | None = None,
) -> TrainingResult:
    """Join the job with the other ranks and train; arguments, result and errors as `train_spec`."""
    spec.rules.check_wire(framework.wire_types)
    ranks = framework.init(spec)
    try:
        return train_spec(
            framework,
            ranks,
            spec,
            output_dir,
            resume_from,
            overwrite=overwrite,
            allow_changes=allow_changes,
            snapshots=snapshots,
        )
    except Preempted:
        framework.shutdown()
        raise


def _run(load: Callable[[], Framework], default_spec: str, arguments: Sequence[str] | None) -> None:
    options = parse_arguments(arguments, default_spec)
    spec = load_spec(options.spec, options.set)
    resume_from = options.resume and user_path(options.resume, "--resume", CheckpointError)
    framework = load()
    output_dir = options.output_dir or default_output_dir(options.spec, framework.name)
    output_dir = user_path(output_dir, "--output-dir", CheckpointError)
    join_and_train(
        framework,
        spec,
        output_dir,
        resume_from or None,
        overwrite=options.overwrite,
        allow_changes=options.allow_change,
        snapshots=SnapshotOptions(options.snapshots, options.snapshot_steps) if options.snapshots else None,
    )
    framework.shutdown()
