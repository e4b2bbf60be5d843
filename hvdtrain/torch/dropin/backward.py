"""The backward that is running: which windows it fills, and what happens when it ends."""

from __future__ import annotations

from typing import Protocol

import torch

from hvdtrain.core.errors import TrainingError


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

    def nest(self) -> None:
        """Hear that a parameter may have several gradients in one backward."""
        ...

    def leave(self) -> None:
        """End a micro-batch that does not complete the window."""
        ...

    def reduce_rest(self) -> None:
        """Start every reduction that has not been started."""
        ...

    def hand_out(self) -> None:
        """Wait for them."""
        ...


class Backward:
    """Tells one backward from the next, and ends windows when it ends.

    One backward may fill windows of several optimizers, and reach them in another order on each rank. It may
    run other backwards inside, as reentrant checkpoints do: together they are one micro-batch, which ends
    when the outermost does.
    """

    def __init__(self) -> None:
        """No backward has been seen."""
        # By the number that PyTorch gives each graph task; those inside others are tasks of their own.
        self._running: dict[int, dict[int, Window]] = {}
        self._ended: dict[int, int] = {}

    def reach(self, window: Window) -> None:
        """A hook of this window runs; the first one of a backward enters it."""
        task = torch._C._current_graph_task_id()
        windows = self._running.get(task)
        if windows is None:
            windows = self._join(task)
        if window.index in windows:
            return
        if not any(window.index in each for each in [*self._running.values()]):
            # Numbers ascend: an older task that still runs is around the one that has ended.
            if task < self._ended.get(window.index, task):
                raise TrainingError(
                    "backwards inside each other, more than PyTorch keeps in one thread: where the outermost "
                    "ends cannot be seen. Use checkpoint(..., use_reentrant=False)"
                )
            window.enter()
        windows[window.index] = window

    def forget(self, window: Window) -> None:
        """A window has ended by itself: the next hook enters it again."""
        for windows in [*self._running.values()]:
            windows.pop(window.index, None)

    def _join(self, task: int) -> dict[int, Window]:
        torch.autograd.Variable._execution_engine.queue_callback(_End(self, task))
        return self._running.setdefault(task, {})

    def end(self, task: int) -> None:
        """All gradients of a task have arrived."""
        windows = self._running.get(task, {})
        # The node that is being computed is one of the backward around this one: see `gone`.
        if torch._C._current_autograd_node() is not None:
            for window in windows.values():
                window.nest()
            return
        self._running.pop(task, None)
        self._ended |= dict.fromkeys(windows, task)
        found = [window for _, window in sorted(windows.items())]
        # All are started before any is waited for, and all ranks wait in the same order: no rank can wait for
        # what another starts only after it has waited for this one.
        closing = [window for window in found if window.closing]
        for window in found:
            window.reduce_rest() if window.closing else window.leave()
        for window in closing:
            window.hand_out()

    def gone(self, task: int) -> None:
        """PyTorch has let go of a task: it has failed, or was inside another, which gets its windows."""
        windows = self._running.pop(task, None)
        if windows and torch._C._current_graph_task_id() >= 0:
            around = torch._C._current_graph_task_id()
            (self._running.get(around) or self._join(around)).update(windows)


class _End:
    """Called when a graph task ends, and deleted with it, also where it has failed.

    It is deleted in the thread that goes on with the task around it.
    """

    def __init__(self, backward: Backward, task: int) -> None:
        self._backward, self._task = backward, task

    def __call__(self) -> None:
        self._backward.end(self._task)

    def __del__(self) -> None:
        self._backward.gone(self._task)


BACKWARD = Backward()
