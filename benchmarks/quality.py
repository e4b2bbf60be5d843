"""What each compression policy costs in quality: the default BERT trained by each of them on 2 ranks.

The loss of the validation split after the whole run, beside that without compression. See docs/benchmarks.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hvdtrain.core.run.metrics import read_metrics
from hvdtrain.core.tables import Kind, make_table, print_table

POLICIES = {
    "none": "{type: none}",
    "fp16": "{type: fp16}",
    "bf16": "{type: bf16}",
    "int8": "{type: int8}",
    "sign": "{type: sign}",
    "topk 1 %": "{type: topk, ratio: 0.01, warmup_steps: 60}",
    "topk 1 %, DGC": "{type: topk, ratio: 0.01, warmup_steps: 60, momentum: 0.9, local_clipping: 1.0}",
    "randomk 1 %": "{type: randomk}",
    "randomk 10 %": "{type: randomk, ratio: 0.1}",
    "powersgd rank 4": "{type: powersgd, matrix_approximation_rank: 4, start_powerSGD_iter: 10}",
    "adasum": "{type: adasum}",
    "local_sgd, 4 updates": "{type: local_sgd, sync_every: 4}",
    "local_sgd, 4 updates, overlap": "{type: local_sgd, sync_every: 4, overlap: true}",
    "diloco, 20 updates": "{type: diloco, sync_every: 20}",
}


def quality(
    *,
    framework: Annotated[str, typer.Option(help="torch or tensorflow.")] = "torch",
    only: Annotated[list[str] | None, typer.Option(help="These policies alone, beside none.")] = None,
    spec: Annotated[str, typer.Option(help="What is trained.")] = "bert",
    set_: Annotated[list[str] | None, typer.Option("--set", help="Override: FIELD.PATH=VALUE.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
) -> None:
    """Train once by each policy and compare what came of it."""
    console, found = Console(), {}
    names = [name for name in POLICIES if name == "none" or not only or name in only]
    for name in names:
        console.print(f"{framework}: {name} ...")
        found[name] = _train(framework, spec, [*(set_ or []), f"compression={POLICIES[name]}"])
    print_table(as_table(framework, spec, found), console)
    if json_file:
        json_file.write_text(json.dumps({"framework": framework, "runs": found}, indent=2) + "\n")


def as_table(framework: str, spec: str, found: dict[str, dict[str, float]]) -> Table:
    """The runs of one framework, that without compression the measure of the others."""
    numbers = ("validation loss", "beside none", "bytes sent", "of none's")
    columns: dict[str, Kind] = {"policy": "name", **dict.fromkeys(numbers, "number")}
    base, rows = found["none"], []
    for name, run in found.items():
        share, change = run["bytes"] / base["bytes"], run["loss"] / base["loss"] - 1.0
        size = f"{run['bytes'] / 2**20:.1f} MiB"
        rows.append((name, f"{run['loss']:.4f}", f"{change:+.2%}", size, f"{share:.1%}"))
    return make_table(columns, rows, f"{framework}: {spec}, 2 ranks, after {base['updates']:.0f} updates")


def _train(framework: str, spec: str, overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        settings = [part for override in overrides for part in ("--set", override)]
        command = ["run", spec, "--framework", framework, "-np", "2", *settings, "--output-dir", folder]
        done = subprocess.run(
            [sys.executable, "-m", "hvdtrain.cli", *command], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"error: hvdtrain {' '.join(command)} failed:\n{done.stderr[-3000:]}")
        updates, evaluations = read_metrics(Path(folder))
    return {
        "loss": evaluations[-1]["eval_loss"],
        "bytes": sum(line["wire_bytes"] for line in updates),
        "updates": updates[-1]["step"],
    }


if __name__ == "__main__":
    typer.run(quality)
