"""Progress of a long run: a bar on a terminal, a line now and then in a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from hvdtrain.core.environment import launched_rank

_SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Shows updates done, the loss and the speed; launchers give ranks a pipe, where a bar would be noise."""

    def __init__(self, total: int) -> None:
        """Start at zero.

        Args:
            total: updates of the whole run.
        """
        self._total = total
        self._started = self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        if _shows_a_bar():
            columns = (
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
            )
            console = Console(force_terminal=True)
            self._bar = RichProgress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, line: Mapping[str, float]) -> None:
        """Show that `step` updates are done.

        Args:
            step: updates done.
            line: the metric line of the last one.
        """
        text = f"loss {line['loss']:.4f}  {1e3 * line['step_time_s']:.0f} ms/update"
        if line["skipped_updates"]:
            text += f"  {line['skipped_updates']} skipped, loss scale {line['loss_scale']:g}"
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
            return
        now = time.monotonic()
        if step in (1, self._total) or now - self._last_line >= _SECONDS_BETWEEN_LINES:
            left = (now - self._started) / step * (self._total - step)
            print(f"step {step}/{self._total}  {text}  {left:.0f} s left", flush=True)
            self._last_line = now


def _shows_a_bar() -> bool:
    # Open MPI gives rank 0 a terminal of its own and prefixes what it writes: a bar would be torn to pieces.
    # `hvdtrain run` puts it together again, and says by FORCE_COLOR when it writes to a terminal itself.
    return bool(os.environ.get("FORCE_COLOR")) if launched_rank() is not None else sys.stdout.isatty()
