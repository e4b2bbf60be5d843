"""Training a model of your own from a program."""

from __future__ import annotations

# Not of typing, whose import takes longer than all else here; type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path
    from typing import Any, Literal

    from hvdtrain.core.run.results import TrainingResult


def train(
    spec: str | Path | Mapping[str, Any],
    framework: Literal["torch", "tensorflow"],
    *,
    model: Callable[..., Any] | None = None,
    train_dataset: Any = None,
    eval_dataset: Any = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    loss: str | Callable[..., Any] | None = None,
    metrics: Sequence[str | Callable[..., Any]] | None = None,
    output_dir: str | Path | None = None,
    resume_from_checkpoint: str | Path | None = None,
    overwrite: bool = False,
    allow_changes: Collection[str] = (),
) -> TrainingResult:
    """Train on this rank; the same program runs under `python`, `horovodrun`, `mpirun` and `srun`.

    An argument takes the place of the field of the spec that it is about. docs/own-models.md is the guide.

    Args:
        spec: a YAML file, a packaged spec's name, or the sections as a mapping.
        framework: which one computes.
        model: a function or class that returns a new `torch.nn.Module` or `keras.Model` (`model.torch`,
            `model.tensorflow`); it is called with `model.args`.
        train_dataset: a map-style dataset, a mapping of arrays, or a function that returns one, or a pair of
            them (`data.dataset`).
        eval_dataset: likewise (`data.eval_dataset`).
        collate_fn: makes a list of samples a batch (`data.collate_fn`).
        loss: a name, or a function of the model's outputs and the batch (`task.loss`).
        metrics: names or such functions (`task.metrics`).
        output_dir: where rank 0 writes; default: `outputs/SPEC-FRAMEWORK`. One that holds another run is
            refused.
        resume_from_checkpoint: a `checkpoint-N` directory to go on from; `auto`: the newest whole one in
            `output_dir`, if there is one.
        overwrite: delete the run that `output_dir` holds.
        allow_changes: fields, as `optimizer.learning_rate`, in which the spec may differ from that of the run
            that goes on, although losses change with them.

    Returns:
        What was produced.

    Raises:
        HvdtrainError: what is wrong, and what to do. Under a launcher it is not raised: the message is shown,
            and the process ends with status 1, so that the whole job ends.
        SystemExit: with status 85, when SIGTERM or SIGUSR1 told a rank to stop, and all have saved a
            checkpoint. Under a launcher the process ends with that status.
    """
    from hvdtrain.core.run.own_job import OwnCode, train_own

    code = OwnCode(model, train_dataset, eval_dataset, collate_fn, loss, metrics)
    return train_own(
        spec,
        framework,
        code,
        output_dir,
        resume_from_checkpoint,
        overwrite=overwrite,
        allow_changes=allow_changes,
    )
