"""One job at a time writes into a directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from hvdtrain.core.errors import CheckpointError

LOCK_FILE = ".lock"
# What says that the file is gone; the latter where another host has deleted it.
_GONE = (errno.ENOENT, errno.ESTALE)
# The open lock of each directory that another rank 0 of the same job may take over.
_held: dict[Path, IO[bytes]] = {}


@contextmanager
def locked(directory: Path, option: str = "--output-dir", job: str | None = None) -> Iterator[None]:
    """Keep other jobs out of a directory; the kernel frees the lock when this process ends, however it ends.

    The file names the process that holds it. Nothing else is left of a job that ends before it writes.

    Args:
        directory: made when it is missing.
        option: what it was given by, for errors.
        job: its name, where its ranks may be started again: then rank 0 takes the lock from one that was
            there before, and is frozen or on a host that nobody can reach any more.

    Raises:
        CheckpointError: another job writes there, or the directory cannot be written.
    """
    new = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _lock(directory, option, job)
    except OSError as error:
        raise unwritable(directory, error, option) from None
    if job is not None:
        _held[directory] = file
    try:
        yield
    finally:
        _held.pop(directory, None)
        with suppress(OSError):
            # Left where nothing can be written any more: the next holder takes it as it is.
            if _is_at(file, directory / LOCK_FILE):
                (directory / LOCK_FILE).unlink()
        file.close()
        if new:
            # It holds something where the job has come so far.
            with suppress(OSError):
                directory.rmdir()


def check_still_locked(directory: Path) -> None:
    """Refuse to go on where rank 0 of the same job has been started again, because this one was given up.

    Args:
        directory: that this process has locked for a job whose ranks may be started again; nothing is said of
            others.

    Raises:
        CheckpointError: naming the one that has the lock.
    """
    file, path = _held.get(directory), directory / LOCK_FILE
    if file is None:
        return
    try:
        # The file that is held is not opened again: closing it once would give the lock back.
        if _is_at(file, path):
            return
        who = f" ({_describe(_read_holder(path.read_bytes()))})"
    except OSError as error:
        if error.errno not in _GONE:
            return
        who = f", or {LOCK_FILE} was deleted"
    raise CheckpointError(
        f"--output-dir {directory}: this job goes on elsewhere{who}, and has given this rank up"
    )


def unwritable(directory: Path, error: OSError, option: str = "--output-dir") -> CheckpointError:
    """What is raised where a directory cannot be written; `option` is what it was given by."""
    return CheckpointError(f"{option} {directory}: cannot be written: {error.strerror}")


def _lock(directory: Path, option: str, job: str | None) -> IO[bytes]:
    path = directory / LOCK_FILE
    while True:
        file = path.open("ab+", buffering=0)
        try:
            # Of this process alone: one by flock would live on in the workers it forks.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with file:
                file.seek(0)
                holder = _read_holder(file.read())
            if job is not None and holder.get("job") == job:
                path.unlink(missing_ok=True)
                continue
            raise CheckpointError(
                f"{option} {directory}: another job is writing there ({_describe(holder)}): wait for its "
                "end, or give another directory"
            ) from None
        except OSError:
            # A file system without locks cannot keep two jobs apart; one alone needs none.
            break
        with suppress(FileNotFoundError):
            if _is_at(file, path):
                break
        # Its last holder has deleted it meanwhile.
        file.close()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "job": job}
    try:
        # What a killed job has left there says nothing any more.
        file.truncate(0)
        file.write(json.dumps(holder).encode())
    except OSError:
        path.unlink()
        file.close()
        raise
    return file


def _is_at(file: IO[bytes], path: Path) -> bool:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())


def _read_holder(content: bytes) -> dict[str, object]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _describe(holder: dict[str, object]) -> str:
    if {"pid", "host", "started"} <= holder.keys():
        return f"process {holder['pid']} on host {holder['host']}, since {holder['started']}"
    return "it has just begun"
