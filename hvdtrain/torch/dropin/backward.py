"""The backward that is running: which windows it fills, and what happens when it ends."""

from __future__ import annotations

from typing import Protocol

import torch


class Window(Protocol):
    """What the end of a backward asks of an optimizer's gradients."""

    index: int

    @property
    def closing(self) -> bool:
        """Whether this backward completes the window."""
        ...

    def enter(self) -> None:
        """Count the micro-batch."""
        ...

    def reduce_rest(self) -> None:
        """Start every reduction that has not been started."""
        ...

    def hand_out(self) -> None:
        """Wait for them."""
        ...


class Backward:
    """Tells one backward from the next, and ends windows when it ends.

    One backward may fill windows of several optimizers, and reach them in another order on each rank.
    """

    def __init__(self) -> None:
        """No backward has been seen."""
        self._task: int | None = None
        self._windows: dict[int, Window] = {}

    def reach(self, window: Window) -> None:
        """A hook of this window runs; the first one of a backward enters it."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            # By its number, because a backward that has failed never came to its end.
            self._task, self._windows = task, {}
            torch.autograd.Variable._execution_engine.queue_callback(self._end)
        if window.index not in self._windows:
            self._windows[window.index] = window
            window.enter()

    def _end(self) -> None:
        # All are started before any is waited for, and all ranks wait in the same order: no rank can wait for
        # what another starts only after it has waited for this one.
        closing = [window for _, window in sorted(self._windows.items()) if window.closing]
        self._task, self._windows = None, {}
        for window in closing:
            window.reduce_rest()
        for window in closing:
            window.hand_out()


BACKWARD = Backward()
