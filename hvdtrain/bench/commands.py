"""`hvdtrain parity` and `hvdtrain demo`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DType(StrEnum):
    """Precision of weights and computation."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"


def parity(
    spec: Annotated[str, typer.Argument(help="YAML file or packaged spec, such as bert.")],
    *,
    np: Annotated[int, typer.Option("-np", "--num-proc", help="How many ranks.")] = 2,
    dtype: Annotated[DType, typer.Option(help="Precision of weights and computation.")] = DType.FLOAT64,
    updates: Annotated[int, typer.Option(min=1, help="How many updates.")] = 100,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where both runs are kept.")] = Path("outputs/parity"),
) -> None:
    """Train SPEC in both frameworks and fail when their losses differ by more than rounding."""
    from hvdtrain.bench.parity import measure_parity

    found, tolerance = measure_parity(spec, np, dtype.value, updates, set_ or [], output_dir)
    kept = found.largest <= tolerance
    typer.echo(
        f"parity {'holds' if kept else 'FAILS'}: largest relative loss difference {found.largest:.3e} "
        f"at update {found.at_step} of {found.updates}, tolerance {tolerance:.0e} ({dtype}, {np} rank(s))"
    )
    raise typer.Exit(0 if kept else 1)


def demo(
    *,
    np: Annotated[int, typer.Option("-np", "--num-proc", help="How many ranks.")] = 2,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("outputs/demo"),
) -> None:
    """Train the default BERT in PyTorch and in TensorFlow through horovodrun, and compare the curves."""
    from hvdtrain.bench.parity import run_both
    from hvdtrain.core.report import compare_runs, plot_losses
    from hvdtrain.launch.commands import Launcher

    outputs = run_both("bert", np, set_ or [], output_dir, Launcher.HOROVODRUN)
    picture = output_dir / "loss_curves.png"
    plot_losses(outputs, picture)
    found = compare_runs(outputs["torch"], outputs["tensorflow"])
    typer.echo("")
    for framework, directory in outputs.items():
        typer.echo(f"{framework:<10}  model {directory / 'model'}   metrics {directory / 'metrics.jsonl'}")
    typer.echo(f"{'picture':<10}  {picture}")
    typer.echo(
        f"the two curves differ by at most {100 * found.largest:.3f} % "
        f"(update {found.at_step} of {found.updates})"
    )
