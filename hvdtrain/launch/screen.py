"""What `hvdtrain run` shows of a job's output."""

from __future__ import annotations

import os
import threading
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Sequence
from typing import IO, TextIO

from hvdtrain.core.process.heartbeat import Beat
from hvdtrain.launch.output import FailureWatch, Line, LineSplitter, Statements


class Screen:
    """Writes the lines of both streams to where they belong, one at a time.

    Attributes:
        watch: has seen them.
    """

    def __init__(self, hear: Callable[[int, Beat], None] | None = None) -> None:
        """Begin.

        Args:
            hear: told of each heartbeat, with its rank.
        """
        self.watch = FailureWatch()
        self._hear = hear
        self._lock = threading.Lock()
        self._bar_shown = False
        self._consequences: list[tuple[Line, TextIO]] = []
        self._readers: list[threading.Thread] = []

    def follow(self, source: IO[bytes], to: TextIO) -> None:
        """Have a thread write what comes from one of a job's streams to one of this process."""
        reader = threading.Thread(target=self._read, args=(source, to), daemon=True)
        reader.start()
        self._readers.append(reader)

    def finish(self) -> None:
        """Write what is left, once the job has ended."""
        # The pipes end with their last writer, and none is left.
        for reader in self._readers:
            reader.join()
        # Where no rank failed by itself, they are all there is to go by.
        if self.watch.first_failure() is None:
            for line, to in self._consequences:
                self._show(line, to)

    def _read(self, source: IO[bytes], to: TextIO) -> None:
        decoder = getincrementaldecoder("utf-8")(errors="replace")
        splitter, statements = LineSplitter(self._hear), Statements()
        while chunk := os.read(source.fileno(), 65536):
            for line in splitter.feed(decoder.decode(chunk)):
                self._take(statements.feed(line), to)
        for line in splitter.close():
            self._take(statements.feed(line), to)
        self._take(statements.close(), to)

    def _take(self, statements: Iterable[Sequence[Line]], to: TextIO) -> None:
        with self._lock:
            for lines in statements:
                for line in lines:
                    self.watch.note(line)
                if self.watch.says_more(lines):
                    for line in lines:
                        self._sort(line, to)

    def _sort(self, line: Line, to: TextIO) -> None:
        if self.watch.is_consequence(line):
            self._consequences.append((line, to))
        elif not (self.watch.is_noise(line) or self.watch.is_said_last(line)):
            self._show(line, to)

    def _show(self, line: Line, to: TextIO) -> None:
        is_bar = line.text.endswith("\r")
        clear = "\x1b[K" if self._bar_shown and not is_bar and to.isatty() else ""
        self._bar_shown = is_bar
        to.write(clear + (f"[rank {line.rank}] {line.text}" if line.rank else line.text))
        to.flush()
