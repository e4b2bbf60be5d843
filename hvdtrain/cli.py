"""The `hvdtrain` command; every subcommand imports what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import importlib
import inspect
import json as json_
import math
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvdtrain.bench.commands import demo, parity, simulate
from hvdtrain.checkpoints import checkpoints
from hvdtrain.core.errors import HvdtrainError
from hvdtrain.core.process.outputs import open_outputs
from hvdtrain.engine.commands import doctor, engine_app
from hvdtrain.export import export
from hvdtrain.launch.command import Framework, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvdtrain.core.families.family import Family
    from hvdtrain.core.plan.plan import Plan
    from hvdtrain.core.spec.job_spec import JobSpec

app = typer.Typer(
    help="One job spec, trained on many machines by Horovod in PyTorch or TensorFlow.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # Rich panels: importing what draws them takes a third of the time that --help has.
    rich_markup_mode=None,
)
app.add_typer(engine_app, name="engine", short_help=engine_app.info.help)
app.command()(run)
app.command()(demo)
app.command()(parity)
app.command()(simulate)
app.command()(checkpoints)
app.command()(export)
app.command()(doctor)

_Spec = Annotated[str, typer.Argument(help="YAML file or packaged spec, such as bert.")]
_Set = Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")]


@app.command()
def validate(spec: _Spec, set_: _Set = None) -> None:
    """Check SPEC and say what is wrong with it, field by field."""
    from hvdtrain.core.spec.job_spec import load_spec

    load_spec(spec, set_ or ())
    typer.echo(f"{spec}: valid")


class _ZeroStage(StrEnum):
    """`zero_stage` of a spec, or all there are."""

    NONE, ONE, TWO, THREE, ALL = "0", "1", "2", "3", "all"


def _bytes(text: str) -> int:
    """A positive number of bytes, as 24GiB, 80GB, 512MiB or 1000000."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        # Pydantic would leave aside what follows.
        found = int(TypeAdapter(ByteSize).validate_python(text)) if re.fullmatch(r"[\d.]+ *\w*", text) else 0
    except ValidationError:
        found = 0
    if found < 1:
        raise typer.BadParameter(
            f"expected a number of bytes, such as 24GiB, 80GB or 512MiB (found {text!r})"
        )
    return found


@app.command()
def plan(
    spec: _Spec,
    *,
    np: Annotated[int, typer.Option("-np", "--num-proc", min=1, help="How many ranks.")] = 1,
    local: Annotated[
        int | None, typer.Option(min=1, help="Ranks on one host; all of them by default.")
    ] = None,
    set_: _Set = None,
    zero_stage: Annotated[
        _ZeroStage | None,
        typer.Option(help="Stage of sharding, in place of the spec's; all: what each takes, side by side."),
    ] = None,
    fit: Annotated[
        int | None,
        typer.Option(
            parser=_bytes,
            metavar="BYTES",
            help="Show how many layers fit in so much memory per rank, such as 24GiB, with each stage.",
        ),
    ] = None,
    framework: Annotated[
        Framework | None,
        typer.Option(help="Which one's peak is shown (default: both), and which builds a model of your own."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print every number that training SPEC on -np ranks would use; prepares the data, starts nothing."""
    from hvdtrain.core import strict_json
    from hvdtrain.core.plan.stages import ZERO_STAGES, Stages, compare_stages
    from hvdtrain.core.plan.table import print_plan, print_stages
    from hvdtrain.core.spec.job_spec import load_spec
    from hvdtrain.engine.cache import wire_types

    one = None if zero_stage in (None, _ZeroStage.ALL) else f"zero_stage={zero_stage}"
    job = load_spec(spec, [*(set_ or ()), *filter(None, [one])])
    job.rules.check_wire(wire_types())
    family, plan_of = _planner(job, framework, np, local or np)
    if fit is None and zero_stage is not _ZeroStage.ALL:
        found: Plan | Stages = plan_of(job)
    else:
        found = compare_stages(job, (job.zero_stage,) if one else ZERO_STAGES, plan_of, family, fit)
    if json:
        typer.echo(strict_json.dumps(found.as_dict(), indent=2))
    elif isinstance(found, Stages):
        print_stages(found, f"{spec}: what each zero_stage takes on {np} rank(s)")
    else:
        print_plan(found, f"{spec}: what a run on {np} rank(s) will do", framework)


def _planner(
    job: JobSpec, framework: Framework | None, ranks: int, local: int
) -> tuple[Family, Callable[[JobSpec], Plan]]:
    """The family of a job's model, and what plans specs with the job's model and data."""
    from hvdtrain.core.families import custom, family_of
    from hvdtrain.core.process.host import usable_cores
    from hvdtrain.core.run.job import open_family, plan_job, prepare_data
    from hvdtrain.core.run.world import World

    world = World(0, ranks, 0, local, usable_cores())
    dataset = prepare_data(job, lambda line: typer.echo(line, err=True))
    if isinstance(job.model, custom.ModelSpec):
        chosen = framework or (Framework.TORCH if job.model.torch else Framework.TENSORFLOW)
        family, _ = open_family(importlib.import_module(f"hvdtrain.{chosen}.job").load(), job, dataset)
    else:
        family = family_of(job.model)
    return family, lambda spec: plan_job(spec, family, dataset, ranks, world.threads(spec.num_threads))


@app.command()
def generate(
    output_dir: Annotated[Path, typer.Argument(help="A job's output directory, its model or a checkpoint.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue; '' starts a new one.")],
    *,
    framework: Annotated[
        Framework | None, typer.Option(help="Which framework computes; default: one that is installed.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to add at most.")] = 50,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Of sampling; 0: always the most likely token.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Sample from so many most likely tokens; default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
) -> None:
    """Continue PROMPT with the causal language model that a job has saved in OUTPUT_DIR."""
    from hvdtrain.core.checkpoints.saved_models import open_model
    from hvdtrain.core.errors import CheckpointError
    from hvdtrain.core.process.paths import user_path
    from hvdtrain.core.run.generation import Sampling, continue_text
    from hvdtrain.engine.cache import require_fit
    from hvdtrain.engine.versions import torch_version

    if not math.isfinite(temperature):
        raise typer.BadParameter("--temperature must be a finite number")
    if top_k is not None and temperature == 0.0:
        raise typer.BadParameter("--top-k has no effect without --temperature above 0")
    saved = open_model(user_path(output_dir, "OUTPUT_DIR", CheckpointError), "causal_lm")
    chosen = framework or (Framework.TORCH if torch_version() else Framework.TENSORFLOW)
    require_fit(chosen)
    model = importlib.import_module(f"hvdtrain.{chosen}.model").Model(saved.model, saved.weights)
    model.write(saved.arrays)
    sampling = Sampling(temperature, top_k, seed)
    found = continue_text(
        model.next_logits, saved, prompt, sampling, max_new_tokens, lambda line: typer.echo(line, err=True)
    )
    typer.echo(prompt + found)


@app.command()
def evaluate(
    output_dir: Annotated[Path, typer.Argument(help="A job's output directory, its model or a checkpoint.")],
    *,
    data: Annotated[
        list[str] | None,
        typer.Option(help="File to evaluate on, as in data.files; default: the job's validation split."),
    ] = None,
    framework: Annotated[
        Framework | None, typer.Option(help="Which framework computes; default: one that is installed.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Evaluate the model that a job has saved in OUTPUT_DIR; under a launcher, on all ranks."""
    from hvdtrain.core.errors import CheckpointError
    from hvdtrain.core.process.ending import ends_the_job
    from hvdtrain.core.process.environment import launched_rank
    from hvdtrain.core.process.paths import user_path
    from hvdtrain.core.run.evaluation_table import print_evaluation
    from hvdtrain.core.run.saved_evaluation import evaluate_saved, read_job
    from hvdtrain.engine.versions import torch_version

    with ends_the_job(raises=launched_rank() is None):
        spec, folder = read_job(user_path(output_dir, "OUTPUT_DIR", CheckpointError), data or ())
        chosen = framework or (Framework.TORCH if torch_version() else Framework.TENSORFLOW)
        loaded = importlib.import_module(f"hvdtrain.{chosen}.job").load()
        found = evaluate_saved(loaded, spec, folder, other_data=bool(data))
    if not launched_rank():
        if json:
            typer.echo(json_.dumps(found.as_dict(), indent=2))
        else:
            print_evaluation(found, f"{folder}, evaluated in {chosen}")
    loaded.shutdown()


@app.command()
def schema() -> None:
    """Print the JSON schema of job specs, for editors that complete and check YAML."""
    from hvdtrain.core.spec.job_spec import json_schema

    typer.echo(json_.dumps(json_schema(), indent=2))


def _summarise(commands: typer.Typer) -> None:
    """Have help show a docstring's first paragraph, whole: typer shows all of it, and cuts it in lists."""
    for info in commands.registered_commands:
        docstring = inspect.getdoc(info.callback) or ""
        info.help = info.short_help = docstring.partition("\n\n")[0].replace("\n", " ")


for _commands in (app, engine_app):
    _summarise(_commands)


def main() -> None:
    """Run the command line; an expected error is one message on standard error and exit status 1."""
    open_outputs()
    try:
        app()
    except HvdtrainError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
