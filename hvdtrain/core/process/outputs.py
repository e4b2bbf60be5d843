"""Standard output and error that never end a job: closed, without a reader, or unable to encode a message."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def open_outputs() -> None:
    """Give this process three standard streams that take any text; call it first of all.

    One that was closed (`>&-`) becomes the null device, before a file of ours gets its number. What its
    encoding lacks, a stream writes as `\\xe9` or `\\u4e2d`.
    """
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
        stream = getattr(sys, name)
        # Those of tests and notebooks have no encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line on standard output at once, whatever its buffer holds."""
    print(text, flush=True)


def outlast_readers() -> None:
    """As `open_outputs`; and from now on a stream that cannot be written any more is dropped in silence.

    Its reader may have gone (`| head`), or the disk with its file be full; a job goes on.
    """
    open_outputs()
    for name in ("stdout", "stderr"):
        if not isinstance(getattr(sys, name), _Outlasting):
            setattr(sys, name, _Outlasting(getattr(sys, name)))


class _Outlasting:
    """A text stream without the errors of the system."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        # What is still buffered is written at exit, where an error would become the exit status.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
