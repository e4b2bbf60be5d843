"""What checkpoints a run has kept, and whether they are whole, as data and as a table."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rich.console import Console

from hvdtrain.core.checkpoints.finding import check_files, checkpoints_in, step_of
from hvdtrain.core.checkpoints.manifest import read_manifest
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.files import size_of
from hvdtrain.core.tables import Kind, make_table, print_table


@dataclass(frozen=True)
class ListedCheckpoint:
    """One checkpoint of a run; None stands for what its format or a damaged manifest does not say.

    Attributes:
        name: of its directory.
        step: updates that the run had taken.
        saved_at: date and time in UTC, as ISO 8601 has them; of format 1, when its directory last changed.
        loss: of the last update.
        size: bytes of all its files.
        framework: which computed.
        ranks: how many there were.
        format: of the checkpoint.
        state: `whole`: every byte is as it was saved; `torn`: something is missing or damaged; `unverified`:
            nothing is missing, and the bytes were not read or, of format 1, never hashed.
        problem: what is wrong with a torn one.
    """

    name: str
    step: int
    saved_at: str
    loss: float | None
    size: int
    framework: str | None
    ranks: int | None
    format: int | None
    state: Literal["whole", "torn", "unverified"]
    problem: str | None


def list_checkpoints(output_dir: Path, every_byte: bool) -> list[ListedCheckpoint]:
    """The checkpoints of a run, the oldest first.

    Args:
        output_dir: of the run.
        every_byte: whether to read all files, not their sizes alone.

    Raises:
        CheckpointError: there is no such directory.
    """
    if not output_dir.is_dir():
        raise CheckpointError(f"{output_dir}: no such directory; give the output directory of a run")
    return [_look(directory, every_byte) for directory in checkpoints_in(output_dir)]


def print_checkpoints(found: list[ListedCheckpoint], title: str) -> None:
    """Print checkpoints on standard output, sizes in MiB (2^20), and below them what is wrong with which.

    Args:
        found: from `list_checkpoints`.
        title: above the table.
    """
    columns: dict[str, Kind] = {
        "step": "number",
        "saved at": "name",
        "loss": "number",
        "MiB": "number",
        "framework": "name",
        "ranks": "number",
        "format": "number",
        "state": "name",
    }
    console = Console()
    print_table(make_table(columns, map(_row, found), title), console)
    for each in found:
        if each.problem:
            console.print(f"torn: {each.problem}", soft_wrap=True, markup=False, highlight=False)


def _row(each: ListedCheckpoint) -> list[str]:
    loss, size = None if each.loss is None else f"{each.loss:.4f}", f"{each.size / 2**20:.1f}"
    cells = (each.step, each.saved_at, loss, size, each.framework, each.ranks, each.format)
    return [*("-" if cell is None else str(cell) for cell in cells), each.state]


def _look(directory: Path, every_byte: bool) -> ListedCheckpoint:
    manifest, problem = None, None
    try:
        manifest = read_manifest(directory)
        check_files(directory, manifest, sizes_only=not every_byte)
    except CheckpointError as error:
        problem = str(error)
    changed = datetime.fromtimestamp(int(directory.stat().st_mtime), UTC)
    return ListedCheckpoint(
        name=directory.name,
        step=manifest.step if manifest else step_of(directory),
        saved_at=manifest.saved_at if manifest else changed.isoformat(),
        loss=manifest.metrics.get("loss") if manifest else None,
        size=size_of(directory),
        framework=manifest.framework if manifest else None,
        ranks=manifest.ranks if manifest else None,
        format=manifest.format if manifest else None if problem else 1,
        state="torn" if problem else "whole" if manifest and every_byte else "unverified",
        problem=problem,
    )
