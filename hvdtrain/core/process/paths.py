"""Paths as users give them, and where caches lie."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hvdtrain.core.errors import HvdtrainError


def user_path(text: str | Path, where: str, error: type[HvdtrainError]) -> Path:
    """The path that a user means, with a leading `~` or `~user` as a shell reads it.

    Args:
        text: as given.
        where: the option or field it was given to, for the error.
        error: what to raise.

    Raises:
        HvdtrainError: of that kind, when nobody has such a home directory.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        whose = str(text).split("/", 1)[0]
        missing = f"the user {whose[1:]} has" if whose != "~" else "HOME is not set, and this user has"
        raise error(f"{where} {text}: {missing} no home directory; write the path in full") from None


def default_output_dir(spec: str | Path, framework: str) -> Path:
    """Where rank 0 writes unless told otherwise: `outputs/SPEC-FRAMEWORK`.

    Args:
        spec: a file or a packaged spec's name.
        framework: `torch` or `tensorflow`.
    """
    return Path("outputs", f"{Path(spec).stem}-{framework}")


def cache_root() -> Path:
    """The folder of all caches: $HVDTRAIN_CACHE_DIR, else `hvdtrain` in $XDG_CACHE_HOME or ~/.cache.

    A user without a home directory, as in many containers, has one in the directory for temporary files.

    Raises:
        HvdtrainError: when it cannot be named or trusted.
    """
    if given := os.environ.get("HVDTRAIN_CACHE_DIR"):
        return user_path(given, "HVDTRAIN_CACHE_DIR", HvdtrainError).absolute()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return user_path(given, "XDG_CACHE_HOME", HvdtrainError).absolute() / "hvdtrain"
    try:
        return Path.home() / ".cache" / "hvdtrain"
    except RuntimeError:
        import tempfile

        place = Path(tempfile.gettempdir(), f"hvdtrain-{os.getuid()}")
        return own_folder(place, f"no home directory: {_SET}")


def own_folder(folder: Path, advice: str) -> Path:
    """Make a folder of this user's alone in a directory where anybody can make one of its name.

    Args:
        folder: its parent exists.
        advice: what to do where it cannot be had.

    Returns:
        The folder.

    Raises:
        HvdtrainError: it cannot be made, or others can write to it.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HvdtrainError(f"{folder}: cannot be made: {error.strerror}; {advice}") from None
    if not is_own_folder(folder):
        raise HvdtrainError(f"{folder}: others can write to it; {advice}")
    return folder


def is_own_folder(folder: Path) -> bool:
    """Whether this is a directory, no link to one, that only this user can write to."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


_SET = "set HVDTRAIN_CACHE_DIR to a directory of yours"
