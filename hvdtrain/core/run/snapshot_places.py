"""Where a host keeps snapshots of elastic runs: below `/dev/shm`, where that has room."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from pathlib import Path

from hvdtrain.core.errors import CheckpointError
from hvdtrain.core.process.outputs import say
from hvdtrain.core.process.paths import is_own_folder, own_folder, user_path

_VARIABLE = "HVDTRAIN_SNAPSHOT_DIR"
ADVICE = f"set {_VARIABLE} to a directory of yours with more room"
# For a shell: where `_places` finds them on any host.
_USUAL = ("/dev/shm", '"${TMPDIR:-/tmp}"')


def deletion(job: str) -> tuple[str, ...]:
    """The command that deletes a job's snapshots on the host where it is run, for one that has ended early.

    Args:
        job: its name.
    """
    given = os.environ.get(_VARIABLE)
    places = [shlex.quote(str(user_path(given, _VARIABLE, CheckpointError)))] if given else _USUAL
    folders = " ".join(f'{place}/hvdtrain-snapshots-"$(id -u)"/{shlex.quote(job)}' for place in places)
    return ("sh", "-c", f"rm -rf -- {folders}")


def roots() -> list[Path]:
    """Those of the places that are there, the best first; what lies in them may be read and deleted."""
    # Anybody can make something of that name in a directory for all users, or a link.
    return [place for place in _places() if is_own_folder(place)]


def roomy_root(needed: int) -> Path:
    """The best place with so many bytes to spare, or else the last one."""
    places = _places()
    if not places:
        raise CheckpointError(f"{_VARIABLE} {os.environ.get(_VARIABLE)}: no such directory")
    usable = [place for place in places if is_own_folder(place) or not os.path.lexists(place)]
    rooms = [place for place in usable if shutil.disk_usage(place.parent).free >= needed]
    root = (rooms or usable[-1:] or places)[0]
    for place in places[: places.index(root)]:
        full = f"{place.parent} has no room for {needed} bytes"
        say(f"{full if place in usable else f'others can write to {place}'}: snapshots are written to {root}")
    return own_folder(root, ADVICE)


def _places() -> list[Path]:
    """Where snapshots may lie on this host, the best place first."""
    places = [Path("/dev/shm"), Path(tempfile.gettempdir())]
    if given := os.environ.get(_VARIABLE):
        places = [user_path(given, _VARIABLE, CheckpointError).absolute()]
    return [place / f"hvdtrain-snapshots-{os.getuid()}" for place in places if place.is_dir()]
