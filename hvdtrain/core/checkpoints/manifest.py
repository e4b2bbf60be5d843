"""What a checkpoint holds, to the byte: `manifest.json`, by which damage is found before it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from hvdtrain.core import strict_json
from hvdtrain.core.errors import CheckpointError, DamagedError

MANIFEST_FILE, STATE_FILE, SPEC_FILE = "manifest.json", "state.json", "spec.json"
# Of what is written today. Format 2 had no files of ranks, and format 1 no manifest.
FORMAT = 3
_SEALED_FORMATS = range(2, FORMAT + 1)
_SEAL = "blake2b"


class FileRecord(NamedTuple):
    """What is known of a file: its bytes, and their BLAKE2b (512 bits) in hexadecimal digits."""

    size: int
    blake2b: str

    @classmethod
    def of(cls, content: bytes) -> FileRecord:
        """That of a file with this content."""
        return cls(len(content), hashlib.blake2b(content).hexdigest())


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says.

    Attributes:
        format: of the checkpoint.
        step: updates that its run had taken.
        saved_at: date and time in UTC, as ISO 8601 has them.
        framework: which computed.
        ranks: how many there were.
        metrics: the last ones before it was saved, by name.
        spec: the BLAKE2b of `spec.json`.
        versions: of Python and of the packages that computed, by name.
        files: every other file of the checkpoint, by name.
    """

    format: int
    step: int
    saved_at: str
    framework: str
    ranks: int
    metrics: Mapping[str, float | None]
    spec: str
    versions: Mapping[str, str]
    files: Mapping[str, FileRecord]

    def text(self) -> str:
        """What the file holds."""
        return _sealed({**asdict(self), "files": {n: r._asdict() for n, r in self.files.items()}})


def new_manifest(
    step: int,
    framework: str,
    ranks: int,
    metrics: Mapping[str, float | None],
    spec: str,
    versions: Mapping[str, str],
    files: Mapping[str, FileRecord],
) -> Manifest:
    """The manifest of a checkpoint that is written now; arguments are attributes of `Manifest`."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(FORMAT, step, now, framework, ranks, metrics, spec, versions, files)


def read_manifest(directory: Path) -> Manifest | None:
    """Read a checkpoint's manifest.

    Args:
        directory: a `checkpoint-N`.

    Returns:
        What it says; None where the checkpoint is of format 1, which has none.

    Raises:
        DamagedError: it is missing or damaged, and by `state.json` the format has one.
        CheckpointError: it cannot be read, or is not of a format that this version knows.
    """
    path = directory / MANIFEST_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        found = _format_of_state(directory)
        if found >= _SEALED_FORMATS.start:
            raise _damaged(found)(f"{path}: is missing") from None
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        record = json.loads(content)
        del record[_SEAL]
        whole = _sealed(record).encode() == content
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise _damaged(_format_of_state(directory))(f"{path}: is damaged")
    if record.get("format") not in _SEALED_FORMATS:
        raise CheckpointError(
            f"{path}: has format {record.get('format')}, and this version of hvdtrain reads 1 to {FORMAT}; "
            f"it was saved by {record.get('versions')}"
        )
    try:
        files = {name: FileRecord(**file) for name, file in record["files"].items()}
        manifest = Manifest(**{**record, "files": files})
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is not what this version of hvdtrain reads as format {record['format']} ({error}); it "
            f"was saved by {record.get('versions')}"
        ) from None
    for name in files:
        if name in ("", "..") or Path(name).name != name:
            raise CheckpointError(f"{path}: names {name!r}, which is no file of a checkpoint")
    return manifest


def verify(directory: Path, manifest: Manifest, sizes_only: bool = False) -> None:
    """Compare every file of a checkpoint with its manifest.

    Args:
        directory: a `checkpoint-N`.
        manifest: its own.
        sizes_only: leave the bytes unread.

    Raises:
        DamagedError: naming the first file that is missing or not what was saved.
        CheckpointError: naming one that cannot be read now.
    """
    for name, expected in manifest.files.items():
        path = directory / name
        try:
            size = path.stat().st_size
            if size != expected.size:
                raise DamagedError(f"{path}: has {size} bytes, and {expected.size} were saved")
            if sizes_only:
                continue
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "blake2b").hexdigest()
        except OSError as error:
            kind = DamagedError if isinstance(error, FileNotFoundError) else CheckpointError
            raise kind(f"{path}: cannot be read: {error.strerror}") from None
        if found != expected.blake2b:
            raise DamagedError(f"{path}: is damaged: its bytes are not those saved")


def _sealed(record: Mapping[str, Any]) -> str:
    """JSON that ends with a hash of itself: nothing else would tell a flipped bit in it."""
    seal = hashlib.blake2b(strict_json.dumps(record).encode()).hexdigest()
    return strict_json.dumps({**record, _SEAL: seal}, indent=2) + "\n"


def _damaged(format_of_state: int) -> type[CheckpointError]:
    """The error of a manifest that tells nothing: the checkpoint may be of another version or program."""
    return DamagedError if format_of_state in _SEALED_FORMATS else CheckpointError


def _format_of_state(directory: Path) -> int:
    """The format by the state file, which is there in every format; 1 where it does not say so."""
    try:
        record = json.loads((directory / STATE_FILE).read_bytes())
        return int(record.get("format", 1))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        # Whoever reads the state says what is wrong with it.
        return 1
