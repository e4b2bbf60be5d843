"""`hvdtrain parity`, `hvdtrain demo` and `hvdtrain simulate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class DType(StrEnum):
    """Precision of weights and computation."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"


class ProblemName(StrEnum):
    """What simulated ranks train."""

    LEAST_SQUARES = "least-squares"
    LANGUAGE_MODEL = "language-model"


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

    directory = _output_dir(output_dir)
    found, tolerance = measure_parity(spec, np, dtype.value, updates, set_ or [], directory)
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
    from hvdtrain.core.run.report import compare_runs, plot_losses
    from hvdtrain.launch.commands import Launcher

    directory = _output_dir(output_dir)
    outputs = run_both("bert", np, set_ or [], directory, Launcher.HOROVODRUN)
    picture = directory / "loss_curves.png"
    plot_losses(outputs, picture)
    found = compare_runs(outputs["torch"], outputs["tensorflow"])
    typer.echo("")
    for framework, own in outputs.items():
        typer.echo(f"{framework:<10}  model {own / 'model'}   metrics {own / 'metrics.jsonl'}")
    typer.echo(f"{'picture':<10}  {picture}")
    typer.echo(
        f"the two curves differ by at most {100 * found.largest:.3f} % "
        f"(update {found.at_step} of {found.updates})"
    )


def simulate(
    spec: Annotated[str, typer.Argument(help="YAML file or packaged spec, such as bert.")],
    *,
    ranks: Annotated[int, typer.Option(min=1, help="How many ranks to simulate.")] = 64,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A policy's name, or YAML such as '{type: topk, ratio: 0.001}'; default: all."),
    ] = None,
    problem: Annotated[list[ProblemName] | None, typer.Option(help="What to train; default: both.")] = None,
    updates: Annotated[int, typer.Option(min=1, help="How many updates.")] = 200,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="For picture and numbers; default: outputs/simulate-SPEC-RANKS.")
    ] = None,
) -> None:
    """Train small problems on many simulated ranks, and show what each compression policy does to them."""
    from rich.console import Console

    from hvdtrain.bench.candidates import candidates
    from hvdtrain.bench.problems import PROBLEMS
    from hvdtrain.bench.simulate import simulate_all
    from hvdtrain.bench.simulate_report import as_table, write
    from hvdtrain.core.tables import print_table

    directory = _output_dir(output_dir or Path("outputs") / f"simulate-{Path(spec).stem}-{ranks}")
    console = Console()
    steps = [*(set_ or []), f"max_steps={updates}", "num_train_epochs=null"]
    tried = candidates(spec, steps, policy or [], ranks)
    job = tried[0].job
    problems = {
        name: PROBLEMS[name](ranks, job.seed, job.model.dtype)
        for name in (chosen.value for chosen in problem or ProblemName)
    }
    results = {}
    for name, each in problems.items():
        results[name] = simulate_all(tried, each, ranks, console)
        print_table(as_table(each, results[name]), console)
    for note in (candidate.note for candidate in tried if candidate.note):
        console.print(note)
    picture, numbers = write(results, problems, directory)
    typer.echo(f"{ranks} ranks, {updates} updates; picture {picture}   numbers {numbers}")


def _output_dir(given: Path) -> Path:
    from hvdtrain.core.errors import TrainingError
    from hvdtrain.core.process.paths import user_path

    return user_path(given, "--output-dir", TrainingError)
