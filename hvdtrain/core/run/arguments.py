"""The arguments of a job script."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse_arguments(arguments: Sequence[str] | None, default_spec: str) -> argparse.Namespace:
    """Read the command line of a rank.

    Args:
        arguments: without the program's name; None: those of the process.
        default_spec: the spec without `--spec`.
    """
    parser = argparse.ArgumentParser(
        description="Train a job spec on this rank; start it with horovodrun or mpirun."
    )
    parser.add_argument(
        "--spec", default=default_spec, help=f"YAML file or packaged spec (default: {default_spec})"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD.PATH=VALUE", help="override a field"
    )
    parser.add_argument("--output-dir", help="where rank 0 writes (default: outputs/SPEC-FRAMEWORK)")
    go_on = "go on from a checkpoint-N directory of either framework; auto: from the newest whole one"
    parser.add_argument("--resume", metavar="CHECKPOINT", help=go_on)
    parser.add_argument("--overwrite", action="store_true", help="delete a run that --output-dir holds")
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="FIELD.PATH",
        help="with --resume: go on with another value of this field than the run had",
    )
    parser.add_argument("--snapshots", metavar="JOB", help="keep snapshots in memory, under this name")
    parser.add_argument("--snapshot-steps", type=int, default=20, help="updates from one to the next")
    return parser.parse_args(arguments)
