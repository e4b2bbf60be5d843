"""The checkpoints of a run: which there are, and the newest that is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from hvdtrain.core.checkpoints.manifest import MANIFEST_FILE, STATE_FILE, Manifest, read_manifest, verify
from hvdtrain.core.checkpoints.model_folder import MODEL_DIR, load_model
from hvdtrain.core.checkpoints.state import load_state
from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.directories import put_back
from hvdtrain.core.process.files import write_whole

_PREFIX = "checkpoint-"
# In the place of a checkpoint's directory: the newest whole one in the output directory.
AUTO = Path("auto")
# A checkpoint that is whole, and its manifest; format 1 has none.
Found = tuple[Path, Manifest | None]
# A text file with the name of the checkpoint that was saved last.
LATEST_FILE = "latest"
# Names of what is being written, and of what it replaces: nothing else in a user's directory.
_UNFINISHED = re.compile(
    rf"\.({_PREFIX}\d+|{MODEL_DIR}|initial)\.(tmp-|before|parts-).*"
    rf"|\.({LATEST_FILE}|.+\.json|metrics.*\.jsonl)\.unfinished"
)


def checkpoints_in(output_dir: Path) -> list[Path]:
    """The `checkpoint-N` directories of a run, by their number.

    Args:
        output_dir: of the run; it need not exist.
    """
    found = {path.name.removeprefix(_PREFIX): path for path in output_dir.glob(f"{_PREFIX}*")}
    return [found[number] for number in sorted((n for n in found if n.isdecimal()), key=int)]


def set_aside(output_dir: Path) -> list[Path]:
    """Checkpoints of a run that went on from an earlier one, under the names that they were given then.

    Args:
        output_dir: of the run; it need not exist.
    """
    return sorted(output_dir.glob(f"{_PREFIX}[0-9]*.before-resume-[0-9]*"))


def is_ours(checkpoint: Path) -> bool:
    """Whether a `checkpoint-N` was saved by hvdtrain, whole or not, by its manifest or its state."""
    every = (keys_in(checkpoint / name) for name in (MANIFEST_FILE, STATE_FILE))
    # The state of format 1 does not say its format.
    return any("step" in keys and not keys.isdisjoint(("format", "windows")) for keys in every)


def keys_in(path: Path) -> frozenset[str]:
    """Names in the JSON object of a file; none where it holds no such object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return frozenset()
    return frozenset(found) if isinstance(found, dict) else frozenset()


def checkpoint_dir(output_dir: Path, step: int) -> Path:
    """Where a run keeps the checkpoint of this step."""
    return output_dir / f"{_PREFIX}{step}"


def step_of(checkpoint: Path) -> int:
    """The number in the name of a `checkpoint-N`."""
    return int(checkpoint.name.removeprefix(_PREFIX))


def point_to(checkpoint: Path) -> None:
    """Say in the run's directory that this is the checkpoint that was saved last.

    Raises:
        CheckpointError: the disk is full or the directory cannot be written.
    """
    path = checkpoint.with_name(LATEST_FILE)
    try:
        write_whole(path, f"{checkpoint.name}\n")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error.strerror}; free some space, or choose another --output-dir"
        ) from None


def put_back_all(output_dir: Path) -> None:
    """Give checkpoints and models their names again that a killed process was about to replace.

    Args:
        output_dir: of a run, where nobody else writes.

    Raises:
        CheckpointError: one cannot be renamed.
    """
    for left in sorted(output_dir.glob(".*.before-*")):
        found = _UNFINISHED.fullmatch(left.name)
        if found and found[1]:
            try:
                put_back(output_dir / found[1])
            except OSError as error:
                raise CheckpointError(f"{left}: cannot be renamed to {found[1]}: {error.strerror}") from None


def left_behind(output_dir: Path) -> list[Path]:
    """What processes that were killed while they wrote have left in a run's directory; not what is missing.

    Raises:
        CheckpointError: as `put_back_all`, which comes first.
    """
    put_back_all(output_dir)
    return [path for path in sorted(output_dir.glob(".*")) if _UNFINISHED.fullmatch(path.name)]


def check_whole(directory: Path) -> Manifest | None:
    """Read every byte of a checkpoint, and compare it with the manifest.

    Args:
        directory: a `checkpoint-N`.

    Returns:
        The manifest; None for format 1, which has none: its files can be opened, and more is not known.

    Raises:
        CheckpointError: naming the first file that is missing or damaged.
    """
    manifest = read_manifest(directory)
    check_files(directory, manifest)
    return manifest


def check_files(directory: Path, manifest: Manifest | None, sizes_only: bool = False) -> None:
    """As `check_whole`, with the manifest that has been read; `sizes_only` as in `verify`."""
    if manifest is None:
        load_state(directory)
        load_model(directory)
    else:
        verify(directory, manifest, sizes_only)


def first_whole(directories: Iterable[Path], skip: Callable[[Path, CheckpointError], object]) -> Found | None:
    """The first of some checkpoints that is whole; None where none is.

    Args:
        directories: in the order in which they are tried.
        skip: called with each that is not whole, and the error.
    """
    for directory in directories:
        try:
            return directory, check_whole(directory)
        except CheckpointError as error:
            skip(directory, error)
    return None


def newest_whole(output_dir: Path, say: Callable[[str], None], who: str = "--resume auto") -> Found | None:
    """The newest whole checkpoint of a run; None where there is none.

    Args:
        output_dir: of the run, where nobody else writes.
        say: prints a line: what was chosen, and which newer ones were skipped and why.
        who: named in these lines.
    """
    try:
        put_back_all(output_dir)
    except CheckpointError as error:
        say(f"warning: {who}: {error}")
    skipped: list[tuple[str, CheckpointError]] = []
    newest_first = reversed(checkpoints_in(output_dir))
    chosen = first_whole(newest_first, lambda path, error: skipped.append((path.name, error)))
    where = f"going on from {chosen[0]}" if chosen else "starting from the beginning"
    for name, reason in skipped:
        say(f"warning: {who}: skipped {name}, {where}: {reason}")
    if not skipped:
        say(f"{who}: {where}" if chosen else f"{who}: no checkpoint in {output_dir}, {where}")
    return chosen
