"""Progress of a long run: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from hvdtrain.core.process.environment import launched_rank
from hvdtrain.core.run.results import describe_skips

_SECONDS_BETWEEN_LINES = 5.0


class Pace:
    """How long a run has yet to go, by the updates that this process has done.

    The first of them is left out: it compiles, and takes many times as long as any other.
    """

    def __init__(self, total: int) -> None:
        """Nothing is known yet.

        Args:
            total: the number of the run's last update.
        """
        self._total = total
        self._first: tuple[int, float] | None = None

    def seconds_left(self, step: int, now: float) -> float | None:
        """Tell that updates are done, and ask.

        Args:
            step: the number of the last one, also of those that an earlier process did.
            now: on any clock, in seconds.

        Returns:
            Seconds to the end, the mean of those after the first times those to come; None after the first.
        """
        if self._first is None:
            self._first = step, now
        done, since = self._first
        if step == done:
            return None
        return (now - since) / (step - done) * (self._total - step)


class Progress:
    """Shows updates done, the loss and the speed; launchers give ranks a pipe, where a bar would be noise."""

    def __init__(self, total: int, done: int = 0) -> None:
        """Start with what was done before.

        Args:
            total: updates of the whole run.
            done: those of an earlier process, when a run goes on.
        """
        self._total, self._pace = total, Pace(total)
        self._last_line: float | None = None
        self._bar: RichProgress | None = None
        if _shows_a_bar():
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = RichProgress(*columns, console=Console(force_terminal=True), refresh_per_second=4)
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, line: Mapping[str, float | None]) -> None:
        """Show that `step` updates are done.

        Args:
            step: updates done.
            line: the metric line of the last one.
        """
        now = time.monotonic()
        text = _describe(line)
        left = self._pace.seconds_left(step, now)
        if left is not None:
            text += f"  {timedelta(seconds=round(left))} left" if self._bar else f"  {left:.0f} s left"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
            return
        last = self._last_line
        if last is None or step == self._total or now - last >= _SECONDS_BETWEEN_LINES:
            print(f"step {step}/{self._total}  {text}", flush=True)
            self._last_line = now


def _describe(line: Mapping[str, float | None]) -> str:
    loss, seconds = line["loss"], line["step_time_s"]
    text = "no loss" if loss is None else f"loss {loss:.4f}"
    text += f"  {1e3 * (seconds or 0.0):.0f} ms/update"
    skips = describe_skips(int(line["skipped_updates"] or 0), int(line["empty_updates"] or 0))
    return f"{text}  {skips}, loss scale {line['loss_scale']:g}" if skips else text


def _shows_a_bar() -> bool:
    # Open MPI gives rank 0 a terminal of its own and prefixes what it writes: a bar would be torn to pieces.
    # `hvdtrain run` puts it together again, and says by FORCE_COLOR when it writes to a terminal itself.
    return bool(os.environ.get("FORCE_COLOR")) if launched_rank() is not None else sys.stdout.isatty()
