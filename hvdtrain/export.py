"""`hvdtrain export`: a saved model for other libraries."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class _Target(StrEnum):
    """The keys of `hvdtrain.core.checkpoints.exporting.TARGETS`, known without importing it."""

    HUGGINGFACE = "huggingface"
    KERAS = "keras"
    SAFETENSORS = "safetensors"


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint-N, or a job's model or output directory.")],
    *,
    to: Annotated[
        _Target,
        typer.Option(
            help="huggingface: a folder for Transformers; keras: model.keras; safetensors: model.safetensors."
        ),
    ],
    output_dir: Annotated[
        Path | None, typer.Option(help="A new folder; default: beside the model's, NAME-TO.")
    ] = None,
) -> None:
    """Export the model in CHECKPOINT to Hugging Face, Keras or a safetensors file, without training state.

    Raises:
        HvdtrainError: the model cannot be exported; nothing is left in `output_dir`.
    """
    from hvdtrain.core.checkpoints import exporting
    from hvdtrain.core.errors import CheckpointError
    from hvdtrain.core.process.paths import user_path

    folder = user_path(checkpoint, "CHECKPOINT", CheckpointError)
    place = output_dir and user_path(output_dir, "--output-dir", CheckpointError)
    typer.echo(exporting.export(folder, to, place))
